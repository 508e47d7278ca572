# ebbd. `make help` lists the targets. Hand-written; objects in build/; V=1 shows the commands.

.DEFAULT_GOAL := all
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/bash

VERSION := 0.1.0
B       := build
PREFIX  ?= /usr/local
DESTDIR ?=
V       ?= 0
Q       := $(if $(filter 1,$(V)),,@)
say      = $(if $(filter 1,$(V)),,@printf '  %-5s %s\n' '$(1)' '$(2)')

CC      := gcc
CXX     := g++
# A user's CFLAGS come last. SAN=address, undefined or thread builds everything with that sanitizer, in a folder of its own.
SAN     ?=
ifneq ($(SAN),)
B       := build/$(subst $(comma),-,$(SAN))
SANFLAGS := -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all
endif
comma := ,

WARN    := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror
CSTD    := -std=c17 -D_GNU_SOURCE
OPT     := -O2 -g -fno-strict-aliasing -ffp-contract=off
CPPFLAGS += -I. -MMD -MP -DEBB_BUILD_VERSION='"$(VERSION)"'
ALLCFLAGS = $(CSTD) $(OPT) $(WARN) -fvisibility=hidden -fPIC $(SANFLAGS) $(CFLAGS)
LDLIBS  := -lm -lpthread

# --- CUDA: built when nvcc is found ------------------------------------------------------------------------------------
NVCC    ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
ifeq ($(SAN)$(NO_CUDA),)
CUDA    := $(if $(NVCC),1,)
endif
CUDA_ARCH ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_90,code=compute_90
NVCCFLAGS := -std=c++17 -O3 -lineinfo $(CUDA_ARCH) -I. --threads 2 -Xcompiler -Wall,-Wextra,-fPIC,-fno-exceptions,-fno-threadsafe-statics
ifneq ($(CUDA),)
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt
CUBLAS_LIBS := -L$(CUDA_HOME)/lib64 -lcublas
endif

# --- sources -----------------------------------------------------------------------------------------------------------
c_of     = $(patsubst %.c,$(B)/obj/%.o,$(wildcard $(1)))
cu_of    = $(if $(CUDA),$(patsubst %.cu,$(B)/obj/%.cu.o,$(wildcard $(1))))

EVICT_O  := $(call c_of,evict/*.c)
CONF_O   := $(call c_of,conf/*.c)
GPU_O    := $(call c_of,gpu/host/*.c) $(B)/obj/gpu/gpu.o $(if $(CUDA),$(call cu_of,gpu/cuda/*.cu) $(call c_of,gpu/cuda/*.c),$(B)/obj/gpu/cuda_none.o)
CLIENT_O := $(call c_of,libclient/*.c)
DAEMON_O := $(filter-out %/main.o,$(call c_of,daemon/*.c))
CTL_O    := $(call c_of,ctl/*.c)
LLAMA_O  := $(call c_of,examples/llama/*.c) $(call cu_of,examples/llama/*.cu)

BIN := $(B)/bin
LIB := $(B)/lib
PROGRAMS := $(if $(wildcard daemon/main.c),$(BIN)/ebbd) $(if $(wildcard ctl/*.c),$(BIN)/ebbctl) \
	$(if $(wildcard examples/llama/*.c),$(BIN)/ebb-llama) $(if $(wildcard examples/hello.c),$(BIN)/ebb-hello)
LIBS := $(if $(CLIENT_O),$(LIB)/libebb.a $(LIB)/libebb.so)

.PHONY: all
all: $(PROGRAMS) $(LIBS)
ifeq ($(CUDA),)
	@echo "CUDA: left out ($(if $(SAN),sanitizer build,nvcc not found)); host pools only"
endif

# --- rules -------------------------------------------------------------------------------------------------------------
$(B)/obj/%_avx2.o: ISA := -mavx2 -mfma -mf16c
$(B)/obj/%_avx512.o: ISA := -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq

$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(ALLCFLAGS) $(ISA) $(OBJFLAGS) -c $< -o $@

$(B)/obj/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(call say,NVCC,$<)
	$(Q)$(NVCC) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -MT $@ -c $< -o $@

$(LIB)/libebb.a: $(CLIENT_O) $(GPU_O)
	@mkdir -p $(@D)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

$(LIB)/libebb.so: $(CLIENT_O) $(GPU_O) libclient/libebb.map
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) $(SANFLAGS) -shared -Wl,-soname,libebb.so.0 -Wl,--version-script=libclient/libebb.map -o $@ \
		$(CLIENT_O) $(GPU_O) -luring $(CUDA_LIBS) $(LDLIBS)
	$(Q)ln -sf libebb.so $(LIB)/libebb.so.0

# Everything that has no main(), for the tests: an archive, so that a test links what it names.
$(LIB)/all.a: $(DAEMON_O) $(CLIENT_O) $(CONF_O) $(EVICT_O) $(GPU_O)
	@mkdir -p $(@D)
	$(Q)rm -f $@ && ar rcs $@ $^

DAEMON_LIBS := -luring -linih -lsystemd -ljansson
CLIENT_LIBS := -luring

define link
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) $(SANFLAGS) -o $@ $(1) $(CUDA_LIBS) $(LDLIBS)
endef

$(BIN)/ebbd: $(B)/obj/daemon/main.o $(DAEMON_O) $(CONF_O) $(EVICT_O) $(GPU_O)
	$(call link,$^ $(DAEMON_LIBS))
$(BIN)/ebbctl: $(CTL_O) $(LIB)/libebb.a
	$(call link,$^ $(CLIENT_LIBS) -ljansson)
$(BIN)/ebb-llama: $(LLAMA_O) $(LIB)/libebb.a
	$(call link,$^ $(CLIENT_LIBS) -ljansson $(if $(CUDA),$(CUBLAS_LIBS)))
$(BIN)/ebb-hello: $(B)/obj/examples/hello.o $(LIB)/libebb.a
	$(call link,$^ $(CLIENT_LIBS))

# --- tests: tests/unit/FOLDER/test_*.c and tests/integration/test_*.c, one program each ---------------------------------------
UNIT_SRC := $(wildcard tests/unit/*/test_*.c)
INT_SRC  := $(wildcard tests/integration/test_*.c)
TESTLIB_O := $(call c_of,tests/lib/*.c)
TESTS    := $(patsubst tests/%.c,$(B)/tests/%,$(UNIT_SRC) $(INT_SRC))
.SECONDARY:

$(B)/tests/%: $(B)/obj/tests/%.o $(TESTLIB_O) $(LIB)/all.a
	$(call link,$< $(TESTLIB_O) $(LIB)/all.a -lcmocka $(DAEMON_LIBS))

.PHONY: tests clean
tests: $(TESTS)

clean:
	rm -rf build

-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)
