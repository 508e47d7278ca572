/*
 * A client without libebb, for tests that speak the protocol badly: it sends what it is told to and maps what it is given.
 * Failures assert through cmocka.
 */
#ifndef TESTS_LIB_RAW_H
#define TESTS_LIB_RAW_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/gpu.h"
#include "libclient/wire.h"

enum { RAW_MAX_SLABS = 64 };

/* A connection without libebb. */
struct raw {
	int sock, doorbell;
	struct wire_shared *shared;
	struct gpu_device *dev;
	uint32_t n_slabs;
	struct raw_slab {
		uint8_t handle[GPU_HANDLE_BYTES];
		int fd;
		size_t bytes;
		void *base;		/* NULL until raw_map() */
	} slab[RAW_MAX_SLABS];
	uint32_t session;
	int32_t status;			/* of the last answer */
	char text[WIRE_TEXT];
};

void raw_connect(struct raw *r, const char *path);
void raw_close(struct raw *r);
/* The next message: its type, 0 when the daemon has hung up. Slabs are noted as they come. */
int raw_receive(struct raw *r);
/* Maps the slabs that came. In a child only: after CUDA has been touched, a process's children cannot use it. */
void raw_map(struct raw *r);
/* Reads until a message of this type, FAILED, or the end (0). */
int raw_until(struct raw *r, int type);
/* `bytes`, type and seq of the head are filled in. */
void raw_send(struct raw *r, struct wire_msg *m, uint16_t type, size_t body);
void raw_hello(struct raw *r);
struct wire_msg raw_good_open(void);
void raw_open(struct raw *r);
void raw_ring(struct raw *r);	/* the doorbell */
void raw_push(struct raw *r, const struct wire_record *record);

#endif
