/* ebbd: options, configuration, start, stop. */
#include "daemon/daemon.h"

#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#define CONF_DEFAULT "/etc/ebbd/ebbd.ini"

struct options {
	const char *config, *socket;
	bool check, print;
};

static void usage(FILE *to)
{
	fputs("usage: ebbd [--config FILE] [--socket PATH] [--check-config | --print-config]\n"
	      "       ebbd --help | --version\n\n"
	      "Owns the KV-cache memory of this machine's GPUs (or of host memory), shares it with model-running processes, and\n"
	      "evicts tokens while they decode. Runs in the foreground; SIGTERM drains and stops, SIGHUP re-reads the configuration.\n\n"
	      "  -c, --config FILE    configuration (default " CONF_DEFAULT "); see ebbd.ini(5)\n"
	      "  -s, --socket PATH    listen here instead of where [daemon] socket says\n"
	      "      --check-config   read the configuration, say what is wrong with it, exit 0 or 1\n"
	      "      --print-config   print the configuration in force as an ini file\n"
	      "  -h, --help           this, and every key of the configuration\n"
	      "  -V, --version        print the version\n\n"
	      "Keys of the configuration:\n\n", to);
	conf_help(to, 0);
}

static int parse_options(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "config", required_argument, NULL, 'c' },   { "socket", required_argument, NULL, 's' },
		{ "check-config", no_argument, NULL, 'k' },   { "print-config", no_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' },	      { "version", no_argument, NULL, 'V' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "c:s:hV", longs, NULL)) != -1) {
		switch (c) {
		case 'c': o->config = optarg; break;
		case 's': o->socket = optarg; break;
		case 'k': o->check = true; break;
		case 'p': o->print = true; break;
		case 'h': usage(stdout); exit(0);
		case 'V': printf("ebbd %s\n", EBB_BUILD_VERSION); exit(0);
		default: fputs("try: ebbd --help\n", stderr); return 2;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "ebbd: '%s' is not an option; try: ebbd --help\n", argv[optind]);
		return 2;
	}
	return 0;
}

static int load(struct daemon *d, const struct options *o)
{
	static char why[4096];
	const char *path = o->config ? o->config : CONF_DEFAULT;
	int rc = conf_load(&d->conf, path, session_check, why, sizeof(why));

	if (rc) {
		fprintf(stderr, "%s%sebbd: the configuration %s cannot be used%s%s\n", why,
			*why && why[strlen(why) - 1] != '\n' ? "\n" : "", path, *why ? "" : ": ", *why ? "" : strerror(-rc));
		return rc;
	}
	d->conf_path = path;
	rc = budget_lanes(&d->conf, &d->lanes, why, sizeof(why));
	if (rc) {
		fprintf(stderr, "ebbd: a table of lanes that %s names cannot be used: %s\n", path, why);
		return rc;
	}
	(void)tide_priorities(d->conf.daemon.priority, d->priority, DAEMON_MAX_PRIORITIES, &d->n_priorities, why, sizeof(why));
	if (o->socket) {
		if (strlen(o->socket) >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
			fprintf(stderr, "ebbd: --socket %s: a socket's path has at most 107 bytes\n", o->socket);
			return -EINVAL;
		}
		memcpy(d->conf.daemon.socket, o->socket, strlen(o->socket) + 1);
	}
	return 0;
}

/* --- the socket ------------------------------------------------------------------------------------------------------------ */

/* 0, or what connect() says. */
static int knock(const struct sockaddr_un *at)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), rc;

	if (fd < 0)
		return errno;
	rc = connect(fd, (const struct sockaddr *)at, sizeof(*at)) ? errno : 0;
	close(fd);
	return rc;
}

/*
 * A socket file that nobody listens on any more may be replaced; a live daemon's may not. A daemon that was killed just now still
 * listens for some milliseconds: the kernel ends its io_uring, with the accept in it, behind its back. So knock for a second.
 */
static int clear_stale(const struct sockaddr_un *at)
{
	const struct timespec nap = { 0, 10000000 };
	struct stat st;
	int rc;

	if (lstat(at->sun_path, &st))
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -ENOTSOCK;
	rc = knock(at);
	for (int tries = 0; rc == 0 && tries < 100; tries++) {
		nanosleep(&nap, NULL);
		rc = knock(at);
	}
	if (rc != ECONNREFUSED)
		return -EADDRINUSE;
	return unlink(at->sun_path) ? -errno : 0;
}

static int listen_own(const struct conf_daemon *conf)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int fd, rc;

	memcpy(at.sun_path, conf->socket, strlen(conf->socket) + 1);
	rc = clear_stale(&at);
	if (rc)
		return rc;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	mode_t before = umask(0177);

	rc = bind(fd, (struct sockaddr *)&at, sizeof(at)) ? -errno : 0;
	umask(before);
	if (!rc && *conf->socket_group) {
		struct group *g = getgrnam(conf->socket_group);

		rc = !g ? -ENOENT : chown(at.sun_path, (uid_t)-1, g->gr_gid) ? -errno : 0;
	}
	if (!rc && (chmod(at.sun_path, conf->socket_mode) || listen(fd, 256)))
		rc = -errno;
	if (rc) {
		close(fd);
		return rc;
	}
	return fd;
}

static int open_socket(const struct conf_daemon *conf, bool *ours)
{
	int n = sd_listen_fds(1), fd;

	*ours = n <= 0;
	if (n > 1 || (n == 1 && sd_is_socket_unix(SD_LISTEN_FDS_START, SOCK_SEQPACKET, 1, NULL, 0) <= 0)) {
		fputs("ebbd: socket activation must pass exactly one listening SOCK_SEQPACKET socket "
		      "(ListenSequentialPacket= in the .socket unit)\n", stderr);
		return -EINVAL;
	}
	fd = n == 1 ? SD_LISTEN_FDS_START : listen_own(conf);
	if (fd == -EADDRINUSE)
		fprintf(stderr, "ebbd: another daemon listens on %s: stop it, or use --socket\n", conf->socket);
	else if (fd < 0)
		fprintf(stderr, "ebbd: cannot listen on %s: %s (does the folder exist, may this user write there, is the group '%s' "
			"known?)\n", conf->socket, strerror(-fd), conf->socket_group);
	return fd;
}

/* --- start and stop ------------------------------------------------------------------------------------------------------------ */

static int start(struct daemon *d, int listen_fd)
{
	char why[512] = "";
	struct rlimit files;
	int rc;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {	/* slabs and clients are descriptors */
		files.rlim_cur = files.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &files);
	}
	d->started_ns = now_ns();
	d->waiting_tail = &d->waiting;
	d->max_clients = d->conf.daemon.max_clients;
	d->client = calloc(d->max_clients, sizeof(*d->client));
	if (!d->client) {
		fprintf(stderr, "ebbd: out of memory for %u clients\n", d->max_clients);
		return -ENOMEM;
	}
	d->mps = mps_on();
	d->no_ahead = getenv("EBB_NO_AHEAD") != NULL;	/* to compare with */
	(void)setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);	/* so that streams which wait are not in front of others */
	for (unsigned i = 0; i < d->conf.n_pools; i++) {
		rc = pool_open(&d->pool[i], &d->conf.pool[i], why, sizeof(why));
		if (rc) {
			fprintf(stderr, "ebbd: %s\n", why);
			return rc;
		}
		d->n_pools++;
		d->done_fd[i] = eventfd(0, EFD_CLOEXEC);
		if (d->done_fd[i] < 0)
			return -errno;
		rc = queue_open(d, i);
		if (rc)
			return rc;
		log_line(LOG_INFO, "pool_open pool=%s device=\"%s\" uuid=%s size=%llu slab=%u slabs=%u", d->pool[i].name,
			 gpu_info(d->pool[i].dev)->name, gpu_info(d->pool[i].dev)->uuid,
			 (unsigned long long)d->pool[i].size_bytes, d->pool[i].slab_bytes, d->pool[i].n_slabs);
		if (gpu_info(d->pool[i].dev)->is_cuda)
			log_line(LOG_INFO, "mps pool=%s state=%s%s", d->pool[i].name, d->mps ? "on" : "off",
				 d->mps ? "" : " hint=\"ebbctl doctor says what it is worth and how to turn it on\"");
	}
	d->life_fd = life_open();
	if (d->life_fd < 0) {
		fprintf(stderr, "ebbd: cannot make the life page: %s\n", strerror(-d->life_fd));
		return d->life_fd;
	}
	rc = loop_new(d, listen_fd);
	if (rc)
		fprintf(stderr, "ebbd: io_uring is not available: %s (is kernel.io_uring_disabled set, or does a seccomp profile block "
			"it? Linux 5.19 or newer is needed)\n", strerror(-rc));
	return rc;
}

static void stop(struct daemon *d, bool unlink_socket)
{
	if (unlink_socket)
		(void)unlink(d->conf.daemon.socket);
	loop_free(d);
	for (unsigned i = 0; i < d->n_pools; i++)
		queue_close(d, i);
	for (unsigned i = 0; d->client && i < d->max_clients; i++)
		if (d->client[i]) {
			d->client[i]->gone = d->client[i]->unwatched = d->client[i]->process_ended = true;
			client_reap(d->client[i]);
			client_release(d->client[i]);
		}
	record_stop();
	for (unsigned i = 0; i < d->n_pools; i++) {
		queue_free(d, i);
		pool_close(&d->pool[i]);
		close(d->done_fd[i]);
	}
	free(d->client);
}

int main(int argc, char **argv)
{
	static struct daemon d;
	struct options o = { 0 };
	bool ours = false;
	int rc = parse_options(argc, argv, &o), fd;

	if (rc)
		return rc;
	setvbuf(stderr, NULL, _IOLBF, 0);
	if (load(&d, &o))
		return 1;
	if (o.print)
		conf_print(&d.conf, stdout);
	if (o.check && !o.print)
		printf("%s: fine\n", d.conf_path);
	if (o.check || o.print)
		return 0;
	log_level(d.conf.daemon.log_level);
	loop_block_signals();
	fd = open_socket(&d.conf.daemon, &ours);
	if (fd < 0)
		return 1;
	rc = start(&d, fd);
	if (!rc) {
		log_line(LOG_NOTE, "started version=%s socket=%s pools=%u", EBB_BUILD_VERSION, d.conf.daemon.socket, d.n_pools);
		rc = loop_run(&d);
		log_line(LOG_NOTE, "stopped clients=%u", d.n_clients);
	}
	stop(&d, ours);
	return rc ? 1 : 0;
}
