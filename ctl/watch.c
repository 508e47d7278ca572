/* watch: ask, draw, wait; and leave the terminal as it was found, however it ends. */
#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "ctl/ctl.h"

#define HIDE_CURSOR "\033[?25l"
#define SHOW_CURSOR "\033[?25h"
#define HOME "\033[H"
#define CLEAR "\033[H\033[2J"
#define CLEAR_BELOW "\033[J"
#define CLEAR_REST_OF_LINE "\033[K"

static volatile sig_atomic_t stopped, suspended, resized;

static void on_signal(int signal)
{
	if (signal == SIGWINCH)
		resized = 1;
	else if (signal == SIGTSTP)
		suspended = 1;
	else
		stopped = 1;
}

struct screen {
	bool drawn_in_place;		/* standard output is a terminal */
	bool keys;			/* so is standard input */
	struct termios saved;
	sigset_t open;			/* the mask while waiting; else our signals are blocked */
};

struct ctl_style ctl_style_of(int fd)
{
	const char *no_colour = getenv("NO_COLOR"), *term = getenv("TERM");
	struct ctl_style style = { 0 };
	struct winsize size;

	if (!isatty(fd))
		return style;
	(void)setlocale(LC_CTYPE, "");
	style.utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
	style.colour = !(no_colour && *no_colour) && term && strcmp(term, "dumb") != 0;
	if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col && size.ws_row) {
		style.columns = size.ws_col;
		style.rows = size.ws_row;
	}
	return style;
}

static bool can_draw_in_place(void)
{
	const char *term = getenv("TERM");

	return isatty(STDOUT_FILENO) && term && strcmp(term, "dumb") != 0;
}

/* --- terminal --------------------------------------------------------------------------------------------------------------------- */

static void screen_on(struct screen *screen)
{
	struct termios raw;

	if (screen->keys && tcgetattr(STDIN_FILENO, &screen->saved) == 0) {
		raw = screen->saved;
		raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);	/* signals stay: Ctrl-C and Ctrl-Z come as such */
		raw.c_cc[VMIN] = 0;
		raw.c_cc[VTIME] = 0;
		(void)tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	}
	if (screen->drawn_in_place) {
		fputs(HIDE_CURSOR CLEAR, stdout);
		(void)fflush(stdout);
	}
}

static void screen_off(struct screen *screen)
{
	if (screen->drawn_in_place) {
		fputs(SHOW_CURSOR, stdout);
		(void)fflush(stdout);
	}
	if (screen->keys)
		(void)tcsetattr(STDIN_FILENO, TCSANOW, &screen->saved);
}

static void screen_open(struct screen *screen, bool in_place)
{
	static const int handled[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGTSTP };
	struct sigaction action = { .sa_handler = on_signal };
	sigset_t mine;

	memset(screen, 0, sizeof(*screen));
	screen->drawn_in_place = in_place;
	screen->keys = in_place && isatty(STDIN_FILENO);
	if (!in_place) {	/* nothing to restore: signals end us as they end anybody */
		(void)sigprocmask(SIG_BLOCK, NULL, &screen->open);
		return;
	}
	sigemptyset(&mine);
	for (size_t i = 0; i < sizeof(handled) / sizeof(handled[0]); i++) {
		sigaddset(&mine, handled[i]);
		(void)sigaction(handled[i], &action, NULL);
	}
	(void)sigprocmask(SIG_BLOCK, &mine, &screen->open);
	screen_on(screen);
}

static void suspend(struct screen *screen)
{
	suspended = 0;
	screen_off(screen);
	(void)raise(SIGSTOP);
	screen_on(screen);	/* fg */
}

/* Waits for the next frame. Returns false when it is time to go. */
static bool screen_wait(struct screen *screen, double seconds)
{
	struct timespec now, end, left;
	struct pollfd key = { .fd = screen->keys ? STDIN_FILENO : -1, .events = POLLIN };
	int64_t ns = (int64_t)(seconds * 1e9);
	char c;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += (time_t)(ns / 1000000000);
	end.tv_nsec += (long)(ns % 1000000000);
	while (!stopped && !resized) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		ns = (int64_t)(end.tv_sec - now.tv_sec) * 1000000000 + (end.tv_nsec - now.tv_nsec);
		if (ns <= 0)
			return true;
		left = (struct timespec){ .tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000) };
		if (ppoll(&key, 1, &left, &screen->open) > 0) {
			if (read(STDIN_FILENO, &c, 1) != 1)
				key.fd = -1;	/* hung up, or somebody else read it */
			else if (c == 'q' || c == 'Q' || c == 3)
				return false;
		}
		if (suspended)
			suspend(screen);
	}
	if (resized) {
		resized = 0;
		fputs(CLEAR, stdout);
	}
	return !stopped;
}

/* Over the old frame. A line is cleared before it is written: behind a full one, some terminals would clear its last character. */
static void draw_in_place(const char *text)
{
	const char *end;

	fputs(HOME, stdout);
	for (; *text != '\0'; text = end + 1) {
		end = strchr(text, '\n');
		if (!end)
			break;
		fputs(CLEAR_REST_OF_LINE, stdout);
		fwrite(text, 1, (size_t)(end - text + 1), stdout);
	}
	fputs(CLEAR_BELOW, stdout);
}

/* --- frames ------------------------------------------------------------------------------------------------------------------------- */

static void drop(struct ctl_snapshot *s)
{
	json_decref(s->status);
	json_decref(s->sessions);
	memset(s, 0, sizeof(*s));
}

static int take(struct ctl_source *source, struct ctl_snapshot *s, char *why, size_t why_bytes)
{
	int err = ctl_ask(source, "status", &s->status, why, why_bytes);

	if (err == 0)
		err = ctl_ask(source, "sessions", &s->sessions, why, why_bytes);
	s->at_s = ctl_source_now(source);
	if (err != 0)
		drop(s);
	return err;
}

static void print_json(const struct ctl_snapshot *s)
{
	json_t *both = json_pack("{s:f, s:O, s:O}", "at_s", s->at_s, "status", s->status, "sessions", s->sessions);

	if (both)
		(void)json_dumpf(both, stdout, JSON_COMPACT);
	fputc('\n', stdout);
	json_decref(both);
}

static void print_frame(const struct ctl_snapshot *old, const struct ctl_snapshot *now, double interval_s, bool in_place, bool first)
{
	struct ctl_style style = ctl_style_of(STDOUT_FILENO);	/* each time: the terminal may have another size */
	char *text = NULL;
	size_t bytes = 0;
	FILE *to = open_memstream(&text, &bytes);

	if (!to)
		return;
	ctl_frame(old, now, interval_s, to, &style);
	(void)fclose(to);
	if (in_place)
		draw_in_place(text);
	else
		printf("%s%s", first ? "" : "\n", text);
	free(text);
}

int ctl_watch(struct ctl_source *source, const struct ctl_watch_options *options)
{
	struct ctl_snapshot old = { 0 }, now = { 0 };
	bool in_place = can_draw_in_place() && !options->json;
	char why[1024], lines[1100];
	struct screen screen;
	int code = 0;

	(void)setvbuf(stdout, NULL, _IOFBF, 1 << 16);	/* a frame is one write: no flicker, no half frames in a pipe */
	screen_open(&screen, in_place);
	for (unsigned n = 0; options->count == 0 || n < options->count; n++) {
		if (n && (!screen_wait(&screen, options->interval_s) || !ctl_source_next(source)))
			break;
		if (take(source, &now, why, sizeof(why)) != 0) {
			if (!in_place || n == 0) {	/* a daemon that was there may come back: somebody is watching for it */
				code = 1;
				break;
			}
			snprintf(lines, sizeof(lines), "%s\n\nasking again every %g s, q quits\n", why, options->interval_s);
			draw_in_place(lines);
		} else if (options->json) {
			print_json(&now);
		} else {
			print_frame(&old, &now, options->interval_s, in_place, n == 0);
		}
		drop(&old);
		old = now;
		memset(&now, 0, sizeof(now));
		if (fflush(stdout) != 0 || ferror(stdout))
			break;
	}
	screen_off(&screen);
	if (code)
		fprintf(stderr, "ebbctl: %s\n", why);
	drop(&old);
	return code;
}
