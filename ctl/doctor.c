/*
 * ebbctl doctor: what this machine gives ebbd and its clients, and what it keeps from them: one line a check, and for what is not as it should be what
 * to do. Looks at files of the kernel and asks the daemon; changes nothing.
 */
#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "ctl/ctl.h"
#include "libclient/ebb.h"

enum state { GOOD, HINT, BAD };

struct report {
	json_t *list;
	const char *root;		/* of the file system that is looked at; "" but in tests */
	unsigned bad;
};

static void add(struct report *r, const char *check, enum state state, const char *cure, const char *format, ...)
	__attribute__((format(printf, 5, 6)));

static void add(struct report *r, const char *check, enum state state, const char *cure, const char *format, ...)
{
	static const char *const names[] = { "ok", "hint", "bad" };
	char found[512];
	va_list args;

	va_start(args, format);
	vsnprintf(found, sizeof(found), format, args);
	va_end(args);
	r->bad += state == BAD;
	json_array_append_new(r->list, json_pack("{s:s, s:s, s:s, s:s?}", "check", check, "state", names[state], "found", found, "cure", cure));
}

/* The first line of a file below root; false: it cannot be read. */
static bool read_line(const struct report *r, const char *path, char *out, size_t bytes)
{
	char full[512];
	FILE *f;
	bool got;

	snprintf(full, sizeof(full), "%s%s", r->root, path);
	f = fopen(full, "re");
	if (!f)
		return false;
	got = fgets(out, (int)bytes, f) != NULL;
	fclose(f);
	if (got)
		out[strcspn(out, "\n")] = '\0';
	return got;
}

static size_t count_files(const struct report *r, const char *pattern)
{
	char full[512];
	glob_t g;
	size_t n;

	snprintf(full, sizeof(full), "%s%s", r->root, pattern);
	n = glob(full, GLOB_NOSORT, NULL, &g) == 0 ? g.gl_pathc : 0;
	globfree(&g);
	return n;
}

/* --- checks ---------------------------------------------------------------------------------------------------------------------- */

/* @status: returned, NULL without a daemon. */
static void check_daemon(struct report *r, struct ctl_source *source, json_t **status)
{
	char why[1024], clean[CTL_CELL], *cure;
	const char *version;

	*status = NULL;
	if (ctl_ask(source, "status", status, why, sizeof(why)) != 0) {
		cure = strchr(why, '\n');
		if (cure)
			*cure++ = '\0';
		add(r, "daemon", BAD, cure, "%s", why);
		return;
	}
	version = ctl_clean(ctl_string(*status, "version"), clean);
	add(r, "daemon", GOOD, NULL, "ebbd %s answers, %.0f clients, %.0f sessions", version, ctl_number(*status, "clients"), ctl_number(*status, "sessions"));
	if (strcmp(version, EBB_VERSION) != 0)
		add(r, "versions", HINT, "Restart ebbd after an upgrade: \"systemctl restart ebbd\".", "ebbd is %s, this tool is %s", version, EBB_VERSION);
}

static void check_io_uring(struct report *r)
{
	char line[64];

	/* The file is there from Linux 6.6 on; before that nothing but seccomp forbids it. */
	if (!read_line(r, "/proc/sys/kernel/io_uring_disabled", line, sizeof(line)) || strcmp(line, "0") == 0)
		add(r, "io_uring", GOOD, NULL, "the kernel allows it");
	else
		add(r, "io_uring", strcmp(line, "1") == 0 ? HINT : BAD,
		    "\"sysctl kernel.io_uring_disabled=0\", or 1 with kernel.io_uring_group set to the group of ebbd. Clients do without it; ebbd does not.",
		    "kernel.io_uring_disabled is %s", line);
}

static void check_large_pages(struct report *r)
{
	static const char path[] = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
	char line[128];

	if (!read_line(r, path, line, sizeof(line)))
		add(r, "large pages", HINT, NULL, "this kernel has none for shared memory");
	else if (strstr(line, "[never]") || strstr(line, "[deny]"))
		add(r, "large pages", HINT, "For host pools \"echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled\": attention over q8 slots was measured 30 % "
		    "faster, over bf16 up to 10 %.", "shared memory gets none: %s", line);
	else
		add(r, "large pages", GOOD, NULL, "shared memory may have them: %s", line);
}

static void check_limits(struct report *r)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) != 0)
		return;
	if (files.rlim_cur < 1024)
		add(r, "descriptors", HINT, "A client maps every slab that it uses, and needs a descriptor while it does: raise \"ulimit -n\" to 1024 or more.",
		    "%llu in this shell", (unsigned long long)files.rlim_cur);
	else
		add(r, "descriptors", GOOD, NULL, "%llu in this shell", (unsigned long long)files.rlim_cur);
}

static size_t check_gpus(struct report *r)
{
	const size_t n = count_files(r, "/proc/driver/nvidia/gpus/*");
	char line[256] = "";

	if (!n) {
		add(r, "GPUs", GOOD, NULL, "none: pools are in host memory");
		return 0;
	}
	read_line(r, "/proc/driver/nvidia/version", line, sizeof(line));
	add(r, "GPUs", GOOD, NULL, "%zu; %s", n, *line ? line : "the driver does not say its version");
	if (!count_files(r, "/dev/nvidia-uvm"))
		add(r, "nvidia-uvm", BAD, "\"nvidia-modprobe -c 0 -u\" as root; ebbd.service does it when it starts.", "there is no /dev/nvidia-uvm: CUDA cannot start");
	if (count_files(r, "/dev/nvidia-caps/nvidia-cap[0-9]*") > 2)
		add(r, "MIG", HINT, NULL, "there are MIG capabilities: a pool cannot span GPU instances; name the instance's UUID as the pool's device");
	return n;
}

/* ebbd says whether it runs under MPS; of other processes nobody can know. */
static void check_mps(struct report *r, const json_t *status, size_t gpus)
{
	const json_t *pools = json_object_get(status, "pools"), *pool;
	size_t i, on_gpu = 0, with = 0;

	json_array_foreach(pools, i, pool) {
		on_gpu += json_is_boolean(json_object_get(pool, "mps"));
		with += ctl_flag(pool, "mps");
	}
	if (!gpus || !on_gpu)
		return;
	if (with == on_gpu)
		add(r, "MPS", GOOD, NULL, "ebbd runs under it; clients gain where they do, too (the same CUDA_MPS_PIPE_DIRECTORY)");
	else
		add(r, "MPS", HINT,
		    "Start \"nvidia-cuda-mps-control -d\" as root (-multiuser-server if clients are not of ebbd's user) with CUDA_MPS_PIPE_DIRECTORY=/run/nvidia-mps, put "
		    "Environment=CUDA_MPS_PIPE_DIRECTORY=/run/nvidia-mps into ebbd.service (\"systemctl edit ebbd\") and the same variable into every client. A fault of one "
		    "client then ends all of them.",
		    "off: kernels of ebbd and of its clients take turns on the GPU. What a window's end costs a client, and what four clients on one GPU lose, docs/performance.md says");
}

/* --- all of them ------------------------------------------------------------------------------------------------------------------- */

static void show(const json_t *list, FILE *to, const struct ctl_style *style)
{
	const json_t *row;
	size_t i;

	json_array_foreach(list, i, row) {
		const char *state = ctl_string(row, "state"), *cure = ctl_string(row, "cure");
		const char *colour = !style->colour ? "" : strcmp(state, "ok") == 0 ? CTL_GREEN : strcmp(state, "bad") == 0 ? CTL_RED : CTL_YELLOW;

		fprintf(to, "%s%-4s%s  %-12s %s\n", colour, state, *colour ? CTL_RESET : "", ctl_string(row, "check"), ctl_string(row, "found"));
		if (*cure)
			fprintf(to, "      %-12s %s\n", "", cure);
	}
}

int ctl_doctor(struct ctl_source *source, const char *root, bool json, FILE *to, const struct ctl_style *style)
{
	struct report r = { .list = json_array(), .root = root ? root : "" };
	json_t *status;
	size_t gpus;

	check_daemon(&r, source, &status);
	check_io_uring(&r);
	check_limits(&r);
	check_large_pages(&r);
	gpus = check_gpus(&r);
	check_mps(&r, status, gpus);
	if (json) {
		(void)json_dumpf(r.list, to, JSON_INDENT(2));
		fputc('\n', to);
	} else {
		show(r.list, to, style);
	}
	json_decref(status);
	json_decref(r.list);
	return r.bad ? 1 : 0;
}
