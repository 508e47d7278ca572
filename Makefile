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

# Folders of an installation.
BINDIR     ?= $(PREFIX)/bin
LIBDIR     ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DATADIR    ?= $(PREFIX)/share/ebbd
MANDIR     ?= $(PREFIX)/share/man
COMPDIR    ?= $(PREFIX)/share/bash-completion/completions
SYSCONFDIR ?= /etc
# systemd reads units of what the administrator installs from /usr/local/lib/systemd/system, too.
SYSTEMDDIR ?= $(LIBDIR)/systemd/system
SYSUSERSDIR ?= $(if $(filter /usr/local,$(PREFIX)),/etc/sysusers.d,$(PREFIX)/lib/sysusers.d)
TMPFILESDIR ?= $(if $(filter /usr/local,$(PREFIX)),/etc/tmpfiles.d,$(PREFIX)/lib/tmpfiles.d)

CC      := gcc
CXX     := g++
# A user's CFLAGS come last. SAN=address, undefined or thread builds everything with that sanitizer, in a folder of its own.
SAN     ?=
comma   := ,
ifneq ($(SAN),)
B       := build/$(subst $(comma),-,$(SAN))
SANFLAGS := -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all
endif

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
# For profilers. Without it (LINEINFO=) device code takes a quarter of the room: what travels to a GPU machine is built so.
LINEINFO  ?= -lineinfo
NVCCFLAGS := -std=c++17 -O3 $(LINEINFO) -Xfatbin -compress-all $(CUDA_ARCH) -I. --threads 2 -Xcompiler -Wall,-Wextra,-fPIC,-fno-exceptions,-fno-threadsafe-statics
# What chooses victims rounds every operation, as the host does (evict/math.h).
$(B)/obj/gpu/cuda/select.cu.o: NVCCFLAGS += -fmad=false
# Products of a warpgroup are no part of sm_90, only of sm_90a; attend_wide.cu is nothing without them.
SM_90A  := -gencode arch=compute_90a,code=sm_90a
$(B)/obj/gpu/cuda/attend_wide.cu.o: NVCCFLAGS := $(subst $(CUDA_ARCH),$(SM_90A),$(NVCCFLAGS))
$(B)/obj/gpu/cuda/heat_mma.cu.o: NVCCFLAGS += $(if $(findstring sm_90,$(CUDA_ARCH)),$(SM_90A))
ifneq ($(CUDA),)
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt
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
REPLAY_O := $(call c_of,replay/*.c)
LLAMA_O  := $(call c_of,examples/llama/*.c) $(call cu_of,examples/llama/*.cu)

# cuBLAS: its headers here, the library when a program runs (examples/llama/blas.cuh). ebb-bench-serve is nothing without it.
CUBLAS   := $(if $(CUDA),$(wildcard $(CUDA_HOME)/include/cublas_v2.h))
SERVE_O  := $(if $(CUBLAS),$(call c_of,examples/serve/*.c) $(call cu_of,examples/serve/*.cu))

BIN := $(B)/bin
LIB := $(B)/lib
PROGRAMS := $(if $(wildcard daemon/main.c),$(BIN)/ebbd) $(if $(wildcard ctl/*.c),$(BIN)/ebbctl) \
	$(if $(wildcard examples/llama/*.c),$(BIN)/ebb-llama) $(if $(wildcard replay/*.c),$(BIN)/ebb-replay) \
	$(if $(wildcard examples/hello.c),$(BIN)/ebb-hello) $(if $(SERVE_O),$(BIN)/ebb-bench-serve)
LIBS := $(if $(CLIENT_O),$(LIB)/libebb.a $(LIB)/libebb.so)

.PHONY: all
all: $(PROGRAMS) $(LIBS)	## build the programs and the library
ifeq ($(CUDA),)
	@echo "CUDA: left out ($(if $(SAN),sanitizer build,$(if $(NO_CUDA),NO_CUDA is set,nvcc not found))); host pools only"
else ifeq ($(CUBLAS),)
	@echo "cuBLAS: no headers in $(CUDA_HOME); ebb-bench-serve, and bf16 weights in ebb-llama, left out"
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
	$(call link,$^ $(CLIENT_LIBS) -ljansson)
$(BIN)/ebb-bench-serve: $(SERVE_O) $(LIB)/libebb.a
	$(call link,$^ $(CLIENT_LIBS))
$(BIN)/ebb-replay: $(REPLAY_O) $(EVICT_O) $(GPU_O)
	$(call link,$^)
$(BIN)/ebb-hello: $(B)/obj/examples/hello.o $(LIB)/libebb.a
	$(call link,$^ $(CLIENT_LIBS))

# --- tests: tests/unit/FOLDER/test_*.c, tests/integration/test_*.c and tests/gpu/test_*.c, one program each ---------------------
UNIT_SRC := $(wildcard tests/unit/*/test_*.c)
INT_SRC  := $(wildcard tests/integration/test_*.c)
GPU_SRC  := $(wildcard tests/gpu/test_*.c)
TESTLIB_O := $(call c_of,tests/lib/*.c)
test_of  = $(patsubst tests/%.c,$(B)/tests/%,$(1))
UNIT_T   := $(call test_of,$(UNIT_SRC))
INT_T    := $(call test_of,$(INT_SRC))
GPU_T    := $(call test_of,$(GPU_SRC)) $(if $(CUDA),$(patsubst tests/%.cu,$(B)/tests/%,$(wildcard tests/gpu/test_*.cu)))
TESTS    := $(UNIT_T) $(INT_T)
.PRECIOUS: $(B)/obj/%.o	# kept, though only pattern rules name them

# Unit tests of the example client and of ebbctl link those programs' own objects, less their main().
LLAMA_PARTS := $(filter-out %/main.o,$(LLAMA_O))
CTL_PARTS   := $(filter-out %/main.o,$(CTL_O))
$(B)/tests/unit/llama/%: $(B)/obj/tests/unit/llama/%.o $(LLAMA_PARTS) $(TESTLIB_O) $(LIB)/all.a
	$(call link,$< $(LLAMA_PARTS) $(TESTLIB_O) $(LIB)/all.a -lcmocka $(DAEMON_LIBS))
$(B)/tests/unit/ctl/%: $(B)/obj/tests/unit/ctl/%.o $(CTL_PARTS) $(TESTLIB_O) $(LIB)/all.a
	$(call link,$< $(CTL_PARTS) $(TESTLIB_O) $(LIB)/all.a -lcmocka $(DAEMON_LIBS))
$(B)/tests/%: $(B)/obj/tests/%.o $(TESTLIB_O) $(LIB)/all.a
	$(call link,$< $(TESTLIB_O) $(LIB)/all.a -lcmocka $(DAEMON_LIBS))
$(B)/tests/gpu/%: $(B)/obj/tests/gpu/%.cu.o $(TESTLIB_O) $(LIB)/all.a
	$(call link,$< $(TESTLIB_O) $(LIB)/all.a -lcmocka $(DAEMON_LIBS) -lstdc++)

# Preloaded into a daemon by tests/integration/test_fault.
FAULT_SO := $(if $(wildcard tests/fault/fault.c),$(B)/tests/fault/fault.so)
$(B)/obj/tests/fault/fault.o: OBJFLAGS := -fvisibility=default
$(B)/tests/fault/fault.so: $(B)/obj/tests/fault/fault.o
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) -shared -o $@ $< -ldl

# What tests find in their environment. Absolute, so that a test may change its folder.
MODEL := build/model/SmolLM2-135M-Instruct.Q4_1.gguf
TEST_ENV = EBB_BIN=$(abspath $(BIN)) EBB_LIB=$(abspath $(LIB)) EBB_MODEL=$(abspath $(MODEL)) EBB_SOURCE=$(CURDIR)
SAN_ENV = ASAN_OPTIONS=abort_on_error=0:detect_leaks=1:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1

# Work that starts with set-up is done by a make of its own: what was just installed (nvcc apart) is then seen, and it runs on every core.
JOBS    := $(shell nproc 2>/dev/null || echo 1)
submake  = $(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS))
SETUP   := tools/setup.sh

.PHONY: tests run-tests check check-asan check-tsan check-valgrind check-model check-gpu check-peers check-headers check-layers check-style fuzz clean help
tests: $(TESTS) $(FAULT_SO)

check:	## set up this machine, build, run unit and integration tests
	@$(SETUP) build test model
	@+$(submake) all tests
	@+$(MAKE) --no-print-directory run-tests

run-tests:
	@$(TEST_ENV) $(SAN_ENV) tools/run-tests.sh $(B)/logs $(if $(SAN),,tools/check-layers.sh tools/check-headers.sh) $(UNIT_T) $(INT_T)

check-asan:	## the same with AddressSanitizer and UndefinedBehaviorSanitizer, in build/address-undefined/
	@$(SETUP) build test model
	@+$(submake) SAN=address,undefined all tests
	@+TEST_TIMEOUT=900 $(MAKE) --no-print-directory SAN=address,undefined run-tests

check-tsan:	## the same with ThreadSanitizer, in build/thread/
	@$(SETUP) build test model
	@+$(submake) SAN=thread all tests
	@+TEST_TIMEOUT=900 $(MAKE) --no-print-directory SAN=thread run-tests

# Valgrind knows no AVX-512 and little of io_uring: the pure parts, with the AVX2 kernels.
check-valgrind:	## evict, conf and wire-format tests under valgrind
	@$(SETUP) build test valgrind
	@+$(submake) all tests
	@$(TEST_ENV) EBB_ISA=plain TEST_TIMEOUT=900 RUN_PREFIX="valgrind -q --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite" \
		tools/run-tests.sh $(B)/logs-valgrind $(filter $(B)/tests/unit/evict/% $(B)/tests/unit/conf/% $(B)/tests/unit/daemon/%,$(UNIT_T))

check-model:	## check the hand-over's state machine with Spin; each rule left out must be caught
	@$(SETUP) build spin
	@tests/model/check.sh

check-gpu:	## device operations and integration tests on EBB_TEST_DEVICE (default cuda:0); skipped without a GPU
	@if [ -z "$(CUDA)" ] || ! nvidia-smi -L >/dev/null 2>&1; then \
		echo "skipped: $(if $(CUDA),no NVIDIA GPU answers,nvcc not found)"; printf '\n0 passed, 0 failed, 1 skipped\n'; \
	else \
		$(SETUP) build test model && $(submake) all tests $(GPU_T) && \
		$(TEST_ENV) EBB_TEST_DEVICE=$${EBB_TEST_DEVICE:-cuda:0} TEST_TIMEOUT=900 tools/run-tests.sh $(B)/logs-gpu \
			$(filter $(B)/tests/unit/gpu/%,$(UNIT_T)) $(GPU_T) $(INT_T); \
	fi

# Not part of check: it downloads torch (540 MB) the first time. Without them it is skipped, not failed.
PEER_KEPT := $(B)/tests/peers/kept
check-peers:	## our ranks against kvpress (PyPI) on Q, K, V of the model: equal kept sets; TEXT=FILE
	@$(SETUP) build test model
	@+$(submake) $(PEER_KEPT)
	@if ! $(SETUP) peers; then echo "skipped: kvpress is not installed (see above)"; printf '\n0 passed, 0 failed, 1 skipped\n'; \
	else $(TEST_ENV) build/peers/bin/python -B tests/peers/parity.py $(PEER_KEPT) $(TEXT) 2>build/peers/parity.log || \
		{ rc=$$?; tail -n 5 build/peers/parity.log >&2; exit $$rc; }; fi

check-headers:	## each header compiles alone, as C and as C++
	@CC=$(CC) CXX=$(CXX) tools/check-headers.sh

check-layers: $(EVICT_O)	## who includes whom; what evict/ may call
	@tools/check-layers.sh $(B)

STYLE_SRC = $(wildcard conf/*.c ctl/*.c daemon/*.c evict/*.c examples/*.c examples/llama/*.c examples/serve/*.c gpu/*.c gpu/host/*.c libclient/*.c replay/*.c)
check-style:	## no function over 70 lines, no file over 600; clang-format where .clang-format exists
	@$(SETUP) build style
	@tools/check-style.sh $(STYLE_SRC)

# --- benchmarks: tests/bench/bench_*.c; each prints JSON lines (tests/bench/bench.h) ------------------------------------------------
BENCHES := $(patsubst tests/bench/%.c,$(B)/bench/%,$(wildcard tests/bench/bench_*.c))
$(B)/bench/%: $(B)/obj/tests/bench/%.o $(TESTLIB_O) $(LIB)/all.a
	$(call link,$< $(TESTLIB_O) $(LIB)/all.a -lcmocka $(DAEMON_LIBS))

.PHONY: bench benches demo
benches: $(BENCHES)
bench:	## run the benchmarks: a table, and build/bench.jsonl
	@$(SETUP) build test model
	@+$(submake) all benches
	@$(TEST_ENV) tools/bench.sh build/bench.jsonl $(BENCHES)

# Runs where the GPU is; without one it says so. BENCH=attend,ragged,long,latency,chunk,append,select,policies,compact,small,peer runs parts
# of bench_gpu, BENCH=check,serve,launch,handover,growth parts of ebb-bench-serve. FlashInfer is downloaded when BENCH names peer.
FLASHINFER := build/flashinfer
PEER_O   := $(if $(CUDA),$(if $(wildcard $(FLASHINFER)/ok),$(B)/obj/tests/gpu/peer_flashinfer.cu.o))
# As FlashInfer compiles itself when it runs.
$(B)/obj/tests/gpu/peer_flashinfer.cu.o: NVCCFLAGS := -std=c++17 -O3 -DNDEBUG -use_fast_math --expt-relaxed-constexpr -Xfatbin -compress-all \
	$(foreach t,F16 BF16 FP8_E4M3 FP8_E5M2,-DFLASHINFER_ENABLE_$(t)) $(if $(findstring sm_90,$(CUDA_ARCH)),$(SM_90A),$(CUDA_ARCH)) -Xcompiler -fPIC -I. \
	$(foreach d,include cccl/libcudacxx/include cccl/cub cccl/thrust,-I $(FLASHINFER)/$(d))
$(B)/bench/bench_gpu: $(B)/obj/tests/gpu/bench_gpu.cu.o $(PEER_O) $(LIB)/all.a
	$(call link,$< $(PEER_O) $(LIB)/all.a $(DAEMON_LIBS) -lstdc++)

.PHONY: bench-gpu
bench-gpu:	## device operations on cuda:0 against the speed of its memory: a table, and build/bench-gpu.jsonl
	@if [ -z "$(CUDA)" ] || ! nvidia-smi -L >/dev/null 2>&1; then echo "skipped: $(if $(CUDA),no NVIDIA GPU answers,nvcc not found)"; else \
		$(if $(findstring peer,$(BENCH)),$(SETUP) flashinfer &&) $(submake) $(B)/bench/bench_gpu $(BIN)/ebbd $(if $(SERVE_O),$(BIN)/ebb-bench-serve) && \
		EBB_BENCH_ROWS=1 tools/bench.sh $(B)/bench-gpu.jsonl $(B)/bench/bench_gpu $(if $(SERVE_O),$(BIN)/ebb-bench-serve); fi

# --- demo ------------------------------------------------------------------------------------------------------------------------
demo:	## several processes decode a real model from one pool that is too small, with ebbd evicting
	@$(SETUP) build model demo
	@+$(submake) all
	@EBB_BIN=$(abspath $(BIN)) EBB_MODEL=$(abspath $(MODEL)) python3 -B tools/demo.py

# --- quality -----------------------------------------------------------------------------------------------------------------------
# OUT, QUALITY, TEXTS, TOKENS, BUDGETS, POLICIES, SPLITS, JOBS, MINUTES: see the head of tools/quality.py.
.PHONY: quality quality-docs
QUALITY_OUT := $(or $(OUT),build/quality)
quality:	## what each policy costs: policies x splits x budgets x documents; QUALITY=full for all of it; resumable
	@$(SETUP) build model quality
	@+$(submake) all
	@EBB_BIN=$(abspath $(BIN)) EBB_MODEL=$(abspath $(MODEL)) QUALITY='$(QUALITY)' TEXTS='$(TEXTS)' OUT=$(QUALITY_OUT) python3 -B tools/quality.py; \
		rc=$$?; python3 -B tools/quality_report.py $(QUALITY_OUT) $(QUALITY_OUT)/quality.md $(QUALITY_OUT) && exit $$rc

quality-docs:	## docs/quality.md and docs/quality/ from what make quality has measured
	@$(SETUP) quality
	@python3 -B tools/quality_report.py $(QUALITY_OUT) docs/quality.md docs/quality

# --- lane tables ------------------------------------------------------------------------------------------------------------------
.PHONY: lanes
lanes:	## measure share/smollm2-135M.lanes anew (a quarter of an hour on two cores); OUT=FILE, TEXTS=N; resumable
	@$(SETUP) build model
	@+$(submake) all
	@EBB_BIN=$(abspath $(BIN)) EBB_MODEL=$(abspath $(MODEL)) OUT='$(OUT)' TEXTS='$(TEXTS)' python3 -B tools/lanes.py

# --- installation ----------------------------------------------------------------------------------------------------------------
UNITS    := $(wildcard systemd/*.service systemd/*.socket systemd/*.service.in systemd/*.socket.in)
fill      = sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@BINDIR@|$(BINDIR)|g' -e 's|@LIBDIR@|$(LIBDIR)|g' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|g' \
	-e 's|@SYSCONFDIR@|$(SYSCONFDIR)|g' -e 's|@MANDIR@|$(MANDIR)|g' -e 's|@DATADIR@|$(DATADIR)|g' -e 's|@VERSION@|$(VERSION)|g'
# $(call put,MODE,FILE,FOLDER[,NAME]): install a text file with its paths filled in; a .in at the end of the name goes.
put       = install -d '$(DESTDIR)$(3)' && $(fill) $(2) >$(B)/put.tmp && install -m $(1) $(B)/put.tmp '$(DESTDIR)$(3)/$(or $(4),$(patsubst %.in,%,$(notdir $(2))))'
SYSUSERS := $(wildcard systemd/*sysusers*)
TMPFILES := $(wildcard systemd/*tmpfiles*)
MANPAGES := $(wildcard docs/man/*.[1-8] docs/man*/*.[1-8])
COMPLETION := $(wildcard ctl/*.bash ctl/*completion* systemd/*completion* docs/*completion*)
INI      := $(firstword $(wildcard systemd/ebbd.ini conf/ebbd.ini systemd/ebbd.ini.in conf/ebbd.ini.in))

.PHONY: install uninstall
install: all	## install everything under PREFIX (/usr/local) and /etc; DESTDIR in front
	$(Q)install -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(LIBDIR)/pkgconfig' '$(DESTDIR)$(INCLUDEDIR)'
	$(Q)install -m 755 $(filter-out %/ebb-hello %/ebb-bench-serve,$(PROGRAMS)) '$(DESTDIR)$(BINDIR)'
	$(Q)install -m 644 $(LIB)/libebb.a '$(DESTDIR)$(LIBDIR)'
	$(Q)install -m 755 $(LIB)/libebb.so '$(DESTDIR)$(LIBDIR)/libebb.so.$(VERSION)'
	$(Q)ln -sf libebb.so.$(VERSION) '$(DESTDIR)$(LIBDIR)/libebb.so.0'
	$(Q)ln -sf libebb.so.0 '$(DESTDIR)$(LIBDIR)/libebb.so'
	$(Q)install -m 644 libclient/ebb.h '$(DESTDIR)$(INCLUDEDIR)/ebb.h'
	@$(call put,644,tools/libebb.pc.in,$(LIBDIR)/pkgconfig)
	$(Q)install -d '$(DESTDIR)$(DATADIR)' && install -m 644 $(wildcard share/*.lanes) '$(DESTDIR)$(DATADIR)'
	@$(foreach f,$(UNITS),$(call put,644,$(f),$(SYSTEMDDIR)) && ):
	@$(foreach f,$(SYSUSERS),$(call put,644,$(f),$(SYSUSERSDIR),ebbd.conf) && ):
	@$(foreach f,$(TMPFILES),$(call put,644,$(f),$(TMPFILESDIR),ebbd.conf) && ):
	@$(foreach f,$(MANPAGES),$(call put,644,$(f),$(MANDIR)/man$(subst .,,$(suffix $(f)))) && ):
	@$(foreach f,$(COMPLETION),$(call put,644,$(f),$(COMPDIR),$(if $(findstring ebbctl,$(f)),ebbctl,$(if $(findstring llama,$(f)),ebb-llama,$(if $(findstring ebbd,$(f)),ebbd,ebbctl)))) && ):
	@if [ -e '$(DESTDIR)$(SYSCONFDIR)/ebbd/ebbd.ini' ]; then echo "kept: $(DESTDIR)$(SYSCONFDIR)/ebbd/ebbd.ini"; \
	else install -d '$(DESTDIR)$(SYSCONFDIR)/ebbd' && $(if $(INI),$(fill) $(INI),$(BIN)/ebbd --print-config) >$(B)/put.tmp && \
		install -m 644 $(B)/put.tmp '$(DESTDIR)$(SYSCONFDIR)/ebbd/ebbd.ini'; fi
	@rm -f $(B)/put.tmp
	@if [ -z '$(DESTDIR)' ] && [ "$$(id -u)" = 0 ]; then ldconfig; fi
	@echo "installed in $(DESTDIR)$(PREFIX)"

uninstall:	## remove what install put there, but /etc/ebbd
	$(Q)rm -f $(foreach p,$(notdir $(PROGRAMS)),'$(DESTDIR)$(BINDIR)/$(p)') '$(DESTDIR)$(LIBDIR)'/libebb.a '$(DESTDIR)$(LIBDIR)'/libebb.so* \
		'$(DESTDIR)$(LIBDIR)/pkgconfig/libebb.pc' '$(DESTDIR)$(INCLUDEDIR)/ebb.h' $(foreach t,$(notdir $(wildcard share/*.lanes)),'$(DESTDIR)$(DATADIR)/$(t)') \
		$(foreach f,$(UNITS),'$(DESTDIR)$(SYSTEMDDIR)/$(patsubst %.in,%,$(notdir $(f)))') \
		'$(DESTDIR)$(SYSUSERSDIR)/ebbd.conf' '$(DESTDIR)$(TMPFILESDIR)/ebbd.conf' \
		$(foreach f,$(MANPAGES),'$(DESTDIR)$(MANDIR)/man$(subst .,,$(suffix $(f)))/$(patsubst %.in,%,$(notdir $(f)))') \
		'$(DESTDIR)$(COMPDIR)'/ebbctl '$(DESTDIR)$(COMPDIR)'/ebb-llama '$(DESTDIR)$(COMPDIR)'/ebbd

# --- rest ------------------------------------------------------------------------------------------------------------------------
clean:	## remove what was built; the model, kvpress and FlashInfer stay (rm -r build removes them)
	rm -rf $(filter-out build/model build/peers build/flashinfer,$(wildcard build/*))

help:	## this list
	@echo "make TARGET [V=1] [SAN=address,undefined] [NO_CUDA=1] [PREFIX=...] [DESTDIR=...]"
	@sed -nE 's/^([a-z-]+):.*## ?(.*)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r t text; do printf '  %-15s %s\n' "$$t" "$$text"; done

-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)
