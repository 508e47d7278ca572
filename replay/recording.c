#include "replay/replay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gpu/layout.h"

static int wrong(char *why, size_t why_bytes, const char *text)
{
	snprintf(why, why_bytes, "%s", text);
	return -EINVAL;
}

static int check_head(const struct evict_record_head *h, size_t bytes, char *why, size_t why_bytes)
{
	if (bytes < sizeof(*h) || memcmp(h->magic, EVICT_RECORD_MAGIC, sizeof(h->magic)) != 0)
		return wrong(why, why_bytes, "this is no recording of ebbd");
	if (h->order != EVICT_RECORD_ORDER)
		return wrong(why, why_bytes, "this recording was made on a machine with another byte order");
	if (h->version != EVICT_RECORD_VERSION) {
		snprintf(why, why_bytes, "this recording has version %u; this program reads version %u", h->version, EVICT_RECORD_VERSION);
		return -EINVAL;
	}
	if (h->head_bytes < sizeof(*h) || h->head_bytes > bytes || !h->n_layers || !h->n_kv_heads ||
	    (uint64_t)h->n_layers * h->n_kv_heads > 65536 || !h->group || h->group > 16 || h->head_dim < 64 || h->head_dim > 256 ||
	    h->slot_type > GPU_Q4 || !h->window || h->window > 2048 || h->sinks > 1024 || h->n_heat > GPU_MAX_HEAT || h->kv > 1 ||
	    !memchr(h->policy, 0, sizeof(h->policy)) || !memchr(h->client, 0, sizeof(h->client)))
		return wrong(why, why_bytes, "the recording's head describes a session that cannot be");
	return 0;
}

static uint64_t window_bytes(const struct recording *r, const struct evict_record_window *w)
{
	uint64_t bytes = (uint64_t)r->n_lanes * (w->base + w->appended) * 4u * r->head->n_heat;

	if (r->head->kv)
		bytes += (uint64_t)r->n_lanes * w->appended * gpu_slot_bytes(r->head->slot_type, r->head->head_dim);
	return bytes;
}

/* Finds the windows. What is not whole at the end is left out: the recording was cut short. */
static int find_windows(struct recording *r, char *why, size_t why_bytes)
{
	size_t at = r->head->head_bytes, room = 0;

	r->cut_short = true;
	while (r->map_bytes - at >= sizeof(struct evict_record_window)) {
		struct evict_record_window w;

		memcpy(&w, r->map + at, sizeof(w));
		if (w.magic == EVICT_RECORD_END) {
			r->cut_short = false;
			break;
		}
		if (w.magic != EVICT_RECORD_WINDOW || w.base != r->tokens || !w.appended || w.appended > r->head->window ||
		    w.base > EVICT_MAX_POSITION - w.appended || w.bytes != window_bytes(r, &w))
			return wrong(why, why_bytes, "the recording has a window that cannot be");
		if (w.bytes > r->map_bytes - at - sizeof(w))
			break;
		if (r->n_windows == room) {
			const char **more = realloc(r->window, (room = room ? 2 * room : 256) * sizeof(*more));

			if (!more)
				return -ENOMEM;
			r->window = more;
		}
		r->window[r->n_windows++] = r->map + at;
		r->tokens += w.appended;
		at += sizeof(w) + w.bytes;
	}
	return r->n_windows ? 0 : wrong(why, why_bytes, "the recording has no whole window");
}

int recording_open(struct recording *r, const char *path, char *why, size_t why_bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc;
	struct stat st;

	memset(r, 0, sizeof(*r));
	if (fd < 0 || fstat(fd, &st)) {
		rc = -errno;
		snprintf(why, why_bytes, "%s", strerror(errno));
		if (fd >= 0)
			close(fd);
		return rc;
	}
	r->map_bytes = (size_t)st.st_size;
	r->map = S_ISREG(st.st_mode) && st.st_size ? mmap(NULL, r->map_bytes, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
	close(fd);
	if (r->map == MAP_FAILED) {
		r->map = NULL;
		return wrong(why, why_bytes, "this is no recording of ebbd");
	}
	r->head = (const struct evict_record_head *)(const void *)r->map;
	rc = check_head(r->head, r->map_bytes, why, why_bytes);
	if (rc)
		return rc;
	r->n_lanes = r->head->n_layers * r->head->n_kv_heads;
	return find_windows(r, why, why_bytes);
}

void recording_close(struct recording *r)
{
	if (r->map)
		munmap((void *)(uintptr_t)r->map, r->map_bytes);
	free(r->window);
	memset(r, 0, sizeof(*r));
}

struct evict_record_window recording_window(const struct recording *r, uint32_t index)
{
	struct evict_record_window w;

	memcpy(&w, r->window[index], sizeof(w));
	return w;
}

const char *recording_heat(const struct recording *r, uint32_t index, uint32_t k, uint32_t lane)
{
	struct evict_record_window w = recording_window(r, index);

	return r->window[index] + sizeof(w) + ((size_t)k * r->n_lanes + lane) * (w.base + w.appended) * 4u;
}

const char *recording_rows(const struct recording *r, uint32_t index, uint32_t which, uint32_t lane)
{
	struct evict_record_window w = recording_window(r, index);
	const struct gpu_parts part = gpu_page_parts(r->head->slot_type, r->head->head_dim);
	size_t at = (size_t)lane * w.appended * gpu_slot_bytes(r->head->slot_type, r->head->head_dim);

	for (uint32_t k = 0; k < which; k++)
		at += (size_t)w.appended * part.bytes[k];
	return recording_heat(r, index, r->head->n_heat, 0) + at;
}

int recording_kind(const struct recording *r, uint32_t kind)
{
	for (uint32_t k = 0; k < r->head->n_heat; k++)
		if (r->head->heat[k] == kind)
			return (int)k;
	return -1;
}
