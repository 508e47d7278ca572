#include "examples/llama/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_ENTRIES 65536u	/* keys or tensors; real files have tens and hundreds */
#define MAX_DIMS 4u

enum value_type {
	V_U8, V_I8, V_U16, V_I16, V_U32, V_I32, V_F32, V_BOOL, V_STRING, V_ARRAY, V_U64, V_I64, V_F64, V_N,
};

static const uint8_t value_bytes[V_N] = {
	[V_U8] = 1, [V_I8] = 1, [V_U16] = 2, [V_I16] = 2, [V_U32] = 4, [V_I32] = 4, [V_F32] = 4, [V_BOOL] = 1,
	[V_U64] = 8, [V_I64] = 8, [V_F64] = 8,
};

struct value {
	struct gguf_text key;
	uint32_t type;
	uint32_t item;		/* type of an array's items */
	uint64_t count;		/* items of an array; bytes of a string */
	const unsigned char *at;
};

struct info {
	struct gguf_text name;
	uint32_t n_dims, type;
	uint64_t dim[MAX_DIMS];
	uint64_t offset;
};

struct gguf {
	const unsigned char *bytes;
	size_t size;
	int mapped;
	char *name;
	struct value *value;
	struct info *info;
	size_t n_values, n_infos;
	size_t data;		/* where tensor data starts */
};

/* --- reading, in bounds ----------------------------------------------------------------------------------- */

struct cursor {
	const unsigned char *bytes;
	size_t size, at;
	int short_read;		/* once set, all reads give zeros */
};

static const unsigned char *take(struct cursor *c, uint64_t n)
{
	const unsigned char *p = c->bytes + c->at;

	if (c->short_read || n > c->size - c->at) {
		c->short_read = 1;
		return NULL;
	}
	c->at += (size_t)n;
	return p;
}

static uint32_t take_u32(struct cursor *c)
{
	const unsigned char *p = take(c, 4);
	uint32_t v = 0;

	if (p)
		memcpy(&v, p, 4);
	return v;
}

static uint64_t take_u64(struct cursor *c)
{
	const unsigned char *p = take(c, 8);
	uint64_t v = 0;

	if (p)
		memcpy(&v, p, 8);
	return v;
}

static struct gguf_text take_text(struct cursor *c)
{
	uint64_t n = take_u64(c);
	const unsigned char *p = take(c, n);

	return (struct gguf_text){ (const char *)p, p ? (size_t)n : 0 };
}

__attribute__((format(printf, 4, 5)))
static int refuse(const struct gguf *f, char *why, size_t why_bytes, const char *format, ...)
{
	va_list args;
	int n = snprintf(why, why_bytes, "%s: ", f->name);

	va_start(args, format);
	if (n >= 0 && (size_t)n < why_bytes)
		vsnprintf(why + n, why_bytes - (size_t)n, format, args);
	va_end(args);
	return -EPROTO;
}

static int truncated(const struct gguf *f, const struct cursor *c, const char *what, char *why, size_t why_bytes)
{
	return refuse(f, why, why_bytes, "the file ends inside %s (at byte %zu of %zu); it is truncated or damaged, fetch it again",
		      what, c->at, c->size);
}

static int same(struct gguf_text t, const char *s)
{
	return t.bytes == strlen(s) && memcmp(t.at, s, t.bytes) == 0;
}

/* --- metadata --------------------------------------------------------------------------------------------- */

static int parse_array(struct cursor *c, struct value *v)
{
	v->item = take_u32(c);
	v->count = take_u64(c);
	v->at = c->bytes + c->at;
	if (v->item >= V_N || v->item == V_ARRAY)
		return -EPROTO;
	if (v->item != V_STRING) {
		if (v->count > UINT64_MAX / 8)
			c->short_read = 1;
		else
			take(c, v->count * value_bytes[v->item]);
		return 0;
	}
	for (uint64_t i = 0; i < v->count && !c->short_read; i++)
		take_text(c);
	return 0;
}

static int parse_values(struct gguf *f, struct cursor *c, char *why, size_t why_bytes)
{
	for (size_t i = 0; i < f->n_values; i++) {
		struct value *v = &f->value[i];

		v->key = take_text(c);
		v->type = take_u32(c);
		if (c->short_read)
			return truncated(f, c, "its metadata", why, why_bytes);
		if (v->type >= V_N || (v->type == V_ARRAY && parse_array(c, v)))
			return refuse(f, why, why_bytes, "metadata key %zu of %zu has a type that GGUF does not define",
				      i + 1, f->n_values);
		if (v->type == V_STRING) {
			struct gguf_text t = take_text(c);

			v->at = (const unsigned char *)t.at;
			v->count = t.bytes;
		} else if (v->type != V_ARRAY) {
			v->at = take(c, value_bytes[v->type]);
		}
		if (c->short_read)
			return truncated(f, c, "its metadata", why, why_bytes);
	}
	return 0;
}

static const struct value *find(const struct gguf *f, const char *key)
{
	for (size_t i = 0; i < f->n_values; i++)
		if (same(f->value[i].key, key))
			return &f->value[i];
	return NULL;
}

int gguf_u32(const struct gguf *file, const char *key, uint32_t *out)
{
	const struct value *v = find(file, key);
	uint64_t bits = 0;
	unsigned n;

	if (!v)
		return -ENOENT;
	n = value_bytes[v->type];
	if (n == 0 || v->type == V_F32 || v->type == V_F64 || v->type == V_BOOL)
		return -EINVAL;
	memcpy(&bits, v->at, n);
	if (bits > UINT32_MAX)
		return -EINVAL;
	/* A negative number has its type's top bit set. */
	if ((v->type == V_I8 || v->type == V_I16 || v->type == V_I32 || v->type == V_I64) && bits >> (8 * n - 1))
		return -EINVAL;
	*out = (uint32_t)bits;
	return 0;
}

int gguf_f32(const struct gguf *file, const char *key, float *out)
{
	const struct value *v = find(file, key);
	double wide;

	if (!v)
		return -ENOENT;
	if (v->type == V_F32) {
		memcpy(out, v->at, 4);
	} else if (v->type == V_F64) {
		memcpy(&wide, v->at, 8);
		*out = (float)wide;
	} else {
		return -EINVAL;
	}
	return 0;
}

int gguf_bool(const struct gguf *file, const char *key, int *out)
{
	const struct value *v = find(file, key);

	if (!v)
		return -ENOENT;
	if (v->type != V_BOOL)
		return -EINVAL;
	*out = *v->at != 0;
	return 0;
}

int gguf_string(const struct gguf *file, const char *key, struct gguf_text *out)
{
	const struct value *v = find(file, key);

	if (!v)
		return -ENOENT;
	if (v->type != V_STRING)
		return -EINVAL;
	*out = (struct gguf_text){ (const char *)v->at, (size_t)v->count };
	return 0;
}

int gguf_strings(const struct gguf *file, const char *key, struct gguf_text **out, size_t *n)
{
	const struct value *v = find(file, key);
	struct gguf_text *list;
	struct cursor c;

	if (!v)
		return -ENOENT;
	if (v->type != V_ARRAY || v->item != V_STRING)
		return -EINVAL;
	list = calloc(v->count ? (size_t)v->count : 1, sizeof(*list));
	if (!list)
		return -ENOMEM;
	c = (struct cursor){ file->bytes, file->size, (size_t)(v->at - file->bytes), 0 };
	for (size_t i = 0; i < v->count; i++)
		list[i] = take_text(&c);
	*out = list;
	*n = (size_t)v->count;
	return 0;
}

int gguf_i32s(const struct gguf *file, const char *key, const void **out, size_t *n)
{
	const struct value *v = find(file, key);

	if (!v)
		return -ENOENT;
	if (v->type != V_ARRAY || (v->item != V_I32 && v->item != V_U32))
		return -EINVAL;
	*out = v->at;
	*n = (size_t)v->count;
	return 0;
}

/* --- tensors ---------------------------------------------------------------------------------------------- */

/* Bytes of a tensor of a type that we know; 0 when it is empty, impossible or of another type. */
static uint64_t info_bytes(const struct info *info)
{
	uint64_t rows = 1, row = tensor_row_bytes(info->type, info->dim[0]);

	for (uint32_t d = 1; d < info->n_dims; d++) {
		if (info->dim[d] == 0 || rows > (UINT64_MAX >> 8) / info->dim[d])
			return 0;
		rows *= info->dim[d];
	}
	return row == 0 || rows > (UINT64_MAX >> 1) / row ? 0 : rows * row;
}

static int parse_infos(struct gguf *f, struct cursor *c, char *why, size_t why_bytes)
{
	for (size_t i = 0; i < f->n_infos; i++) {
		struct info *info = &f->info[i];

		info->name = take_text(c);
		info->n_dims = take_u32(c);
		if (!c->short_read && (info->n_dims == 0 || info->n_dims > MAX_DIMS))
			return refuse(f, why, why_bytes, "tensor %zu of %zu has %u dimensions; 1 to %u are possible",
				      i + 1, f->n_infos, info->n_dims, MAX_DIMS);
		for (uint32_t d = 0; d < info->n_dims && !c->short_read; d++)
			info->dim[d] = take_u64(c);
		info->type = take_u32(c);
		info->offset = take_u64(c);
		if (c->short_read)
			return truncated(f, c, "its list of tensors", why, why_bytes);
	}
	return 0;
}

static int check_data(struct gguf *f, const struct cursor *c, char *why, size_t why_bytes)
{
	uint32_t alignment = 32;
	int err = gguf_u32(f, "general.alignment", &alignment);

	if ((err && err != -ENOENT) || alignment == 0 || alignment > 1u << 20 || (alignment & (alignment - 1)))
		return refuse(f, why, why_bytes, "general.alignment is not a power of two up to 1 MiB");
	f->data = (c->at + alignment - 1) / alignment * alignment;
	for (size_t i = 0; i < f->n_infos; i++) {
		const struct info *info = &f->info[i];
		uint64_t bytes = info_bytes(info);

		if (!tensor_type_name(info->type))
			continue;	/* gguf_tensor() refuses it if anybody asks for it */
		if (bytes == 0)
			return refuse(f, why, why_bytes, "tensor %.*s has an impossible shape",
				      (int)(info->name.bytes < 64 ? info->name.bytes : 64), info->name.at);
		if (info->offset % alignment)
			return refuse(f, why, why_bytes, "tensor %.*s is not aligned to %u bytes",
				      (int)(info->name.bytes < 64 ? info->name.bytes : 64), info->name.at, alignment);
		if (f->data > f->size || info->offset > f->size - f->data || bytes > f->size - f->data - info->offset)
			return refuse(f, why, why_bytes, "tensor %.*s reaches beyond the end of the file; "
				      "it is truncated, fetch it again",
				      (int)(info->name.bytes < 64 ? info->name.bytes : 64), info->name.at);
	}
	return 0;
}

int gguf_tensor(const struct gguf *file, const char *name, struct tensor *out)
{
	for (size_t i = 0; i < file->n_infos; i++) {
		const struct info *info = &file->info[i];

		if (!same(info->name, name))
			continue;
		for (uint32_t d = 2; d < info->n_dims; d++)
			if (info->dim[d] != 1)
				return -EINVAL;
		if (!tensor_type_name(info->type) || info->dim[0] > UINT32_MAX ||
		    (info->n_dims > 1 && info->dim[1] > UINT32_MAX))
			return -EINVAL;
		*out = (struct tensor){
			.data = file->bytes + file->data + info->offset, .type = (enum tensor_type)info->type,
			.cols = (uint32_t)info->dim[0], .rows = info->n_dims > 1 ? (uint32_t)info->dim[1] : 1,
			.row_bytes = tensor_row_bytes(info->type, info->dim[0]),
		};
		return 0;
	}
	return -ENOENT;
}

size_t gguf_n_tensors(const struct gguf *file)
{
	return file->n_infos;
}

size_t gguf_size(const struct gguf *file)
{
	return file->size;
}

const char *gguf_name(const struct gguf *file)
{
	return file->name;
}

/* --- opening ---------------------------------------------------------------------------------------------- */

static int parse(struct gguf *f, char *why, size_t why_bytes)
{
	struct cursor c = { f->bytes, f->size, 0, 0 };
	const unsigned char *magic = take(&c, 4);
	uint32_t version = take_u32(&c);
	uint64_t n_infos = take_u64(&c), n_values = take_u64(&c);
	int err;

	if (!magic || memcmp(magic, "GGUF", 4) != 0)
		return refuse(f, why, why_bytes, "not a GGUF file (it does not begin with \"GGUF\")");
	if (c.short_read)
		return truncated(f, &c, "its header", why, why_bytes);
	if (version != 2 && version != 3)
		return refuse(f, why, why_bytes, "GGUF version %u; this program reads versions 2 and 3%s", version,
			      version > 0xffff ? " (a big-endian file?)" : "");
	if (n_values > MAX_ENTRIES || n_infos > MAX_ENTRIES)
		return refuse(f, why, why_bytes, "%llu metadata keys and %llu tensors; more than %u are not believed",
			      (unsigned long long)n_values, (unsigned long long)n_infos, MAX_ENTRIES);
	f->value = calloc(n_values ? n_values : 1, sizeof(*f->value));
	f->info = calloc(n_infos ? n_infos : 1, sizeof(*f->info));
	if (!f->value || !f->info)
		return -ENOMEM;
	f->n_values = n_values;
	f->n_infos = n_infos;
	err = parse_values(f, &c, why, why_bytes);
	if (!err)
		err = parse_infos(f, &c, why, why_bytes);
	return err ? err : check_data(f, &c, why, why_bytes);
}

int gguf_parse(const void *bytes, size_t size, const char *name, struct gguf **out, char *why, size_t why_bytes)
{
	struct gguf *f = calloc(1, sizeof(*f));
	int err;

	if (!f || !(f->name = strdup(name))) {
		free(f);
		snprintf(why, why_bytes, "out of memory");
		return -ENOMEM;
	}
	f->bytes = bytes;
	f->size = size;
	err = parse(f, why, why_bytes);
	if (err) {
		if (err == -ENOMEM)
			snprintf(why, why_bytes, "out of memory");
		gguf_close(f);
		return err;
	}
	*out = f;
	return 0;
}

int gguf_open(const char *path, struct gguf **out, char *why, size_t why_bytes)
{
	int err, fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *bytes;

	if (fd < 0 || fstat(fd, &st)) {
		err = -errno;
		snprintf(why, why_bytes, "%s: cannot open the model: %s", path, strerror(-err));
		goto out_close;
	}
	if (!S_ISREG(st.st_mode) || st.st_size == 0) {
		err = -EPROTO;
		snprintf(why, why_bytes, "%s: not a GGUF file (%s)", path, S_ISREG(st.st_mode) ? "it is empty" : "not a file");
		goto out_close;
	}
	bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (bytes == MAP_FAILED) {
		err = -errno;
		snprintf(why, why_bytes, "%s: cannot map the model: %s", path, strerror(-err));
		goto out_close;
	}
	err = gguf_parse(bytes, (size_t)st.st_size, path, out, why, why_bytes);
	if (err)
		munmap(bytes, (size_t)st.st_size);
	else
		(*out)->mapped = 1;
out_close:
	if (fd >= 0)
		close(fd);
	return err;
}

void gguf_close(struct gguf *file)
{
	if (!file)
		return;
	if (file->mapped)
		munmap((void *)(uintptr_t)file->bytes, file->size);
	free(file->value);
	free(file->info);
	free(file->name);
	free(file);
}
