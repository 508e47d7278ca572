/*
 * Hand-over of one session between a client and the daemon, and the ring that carries the news of it (libclient/wire.h).
 *
 * Words in shared memory, counted in tokens:
 *   begun     tokens the client has begun   } one 64-bit word (hand), changed by compare-and-swap, so that all three are
 *   epoch     grants so far                 } read at one instant, and a swap fails when a claim or a grant has come in
 *   claim     the daemon wants the session  } between
 *   finished  tokens whose device work is done: written by step_end on the host, by the device itself on CUDA
 *   want      tokens the client's next step would like, when a window is too few
 *   granted   tokens the daemon allows in all; with the tables behind it (base, next slots, page ids) the window
 *   c_sleeps, d_sleeps   "wake me" flags (NEED_WAKEUP of the two rings), each set before a last look and a sleep
 *
 * The daemon owns the session while (claim or begun == granted) and finished == begun, or when the
 * client's process is gone (pidfd), which is later than its death: its kernels may still run until then.
 *
 * The client: step_begin reads hand, then granted, then swaps begun up while there is no claim and the grant allows it. step_end
 * writes finished (or leaves that to the device), then looks at the claim, and says in the step's record that the daemon should look.
 *
 * The daemon looks at the words only when something tells it to: a record in the ring, the doorbell, a claim of its own. That is
 * the point of this model: nothing here waits for a word to change unless somebody would really be woken.
 *
 * -DCUDA     the device finishes later, by itself. Whenever step_begin is about to sleep it has the stream ring the doorbell behind
 *            what it has been given (step_end does so too behind a step that used the window up or found a claim, which only saves
 *            time). A claim that comes after step_end's look while the client then stays idle is told by nobody: -DTIMER lets the
 *            daemon look by itself now and then while it has a claim open on CUDA. Without it every client still completes, but
 *            not every claim is served; with it both hold, even if step_begin rings nothing. On the host no timer is needed:
 *            step_end's look at the claim, after finished, is enough.
 * -DAHEAD    (with -DCUDA) devices that wait for each other: the daemon may publish a grant before the client's device is done; then its own
 *            device waits for `finished`, and the client's stream for `turned`, at the first step behind the grant. What must hold is a matter
 *            of the devices: the turn runs when all begun before it is done, and nothing begun behind it has started. The daemon may refuse to go
 *            ahead (no queue is free); step_end has nobody ring, since step_begin will, after a while.
 * -DCRASH    lets either side die at any moment.
 * -DBUG=n    leaves one rule out; check.sh says which, and how each is caught.
 *
 * The model has sequentially consistent memory: in C every flag-then-look pair needs a full fence between the two.
 */
#ifndef BUG
#define BUG 0
#endif
#define W      2                /* most tokens that a grant allows; a window is 1 */
#ifndef TOKENS
#define TOKENS 4                /* tokens the client wants in all, in steps of 1 or 2 */
#endif
#ifndef CLAIMS
#define CLAIMS 1                /* how often the daemon may want memory back, at any moment */
#endif
#define N      2                /* entries of the submission ring; its head and tail count modulo 2N */

#define NONE    0               /* a record that nobody has written */
#define STEP    1
#define USED_UP 2               /* STEP with the flag: look at the words */
#define WANT    3

byte begun, epoch, finished, want, granted = W, tables;
bool claim, c_sleeps, d_sleeps;
bool c_bell, d_bell;            /* eventfds: readable or not */
#ifdef CUDA
byte launched;                  /* tokens of steps that are with the device: what it may touch memory for */
bool notify;                    /* the stream has been asked to ring the doorbell behind what it has */
#endif
#ifdef AHEAD
byte turn, turned;              /* batches of turns granted ahead (with one session: turns); of those, done by the daemon's device */
byte boundary;                  /* tokens before the last of them */
bool flying, device_done;       /* it is on the daemon's device; the device has rung its eventfd */
bool c_runs, d_runs;            /* a step on the client's device, a turn on the daemon's */
byte awaited, wait_at, wait_for;        /* the client's stream: before token wait_at it waits for turned >= wait_for */
#define rang device_done         /* all that has come in is taken before the daemon looks further */
#define stopped (finished == wait_at && turned < wait_for)
#endif
#ifndef AHEAD
#define rang false
#endif
byte sq[N], sq_head, sq_tail;
bool c_dead, c_gone, d_dead;
bool c_over;                    /* the client has done all its tokens, or was told -EPIPE */
bool freed;                     /* a dead client's pages are back in the pool */
bool daemon_owns;
byte pressure = CLAIMS;

#define next(x)       x = (x + 1) % 4
#define fill          ((sq_tail + 2 * N - sq_head) % (2 * N))

/* --- the client ------------------------------------------------------------------------------------------------------------- */

/* Full: the daemon empties the ring without being asked; a client that finds it full waits (and sees the daemon die). */
inline push(record) {
#if BUG != 10
	(fill < N || d_dead);
#endif
	if
	:: d_dead
	:: else ->
#if BUG == 9
		next(sq_tail);                          /* the tail before the record */
		sq[(sq_tail + 2 * N - 1) % N] = record;
#else
		sq[sq_tail % N] = record;
		next(sq_tail);
#endif
		if :: d_sleeps -> d_bell = true :: else fi
	fi
}

inline ring_when_done() {       /* the doorbell rings when the device has finished all it has now */
#ifdef CUDA
	notify = true
#else
	skip
#endif
}

/* Could the step begin? Else ask for more than a window, once; the answer, a new epoch, is taken as it is. */
inline look_at_words() {
	d_step { e = epoch; may = !claim };             /* hand */
	g = granted;
	if
	:: may && n > 1 && begun + n > g && !asked ->
		may = false; asked = true; w_epoch = e;
		want = n;
		push(WANT)
	:: may && (begun == g || (n > 1 && begun + n > g && asked && e == w_epoch)) -> may = false
	:: else                                         /* now with what is left, or later because of a claim */
	fi
}

inline step() {
	assert(begun == TOKENS - left + n);     /* else a begin was lost */
	assert(begun <= granted);       /* else it writes slots that are not its own */
	assert(mine == tables);         /* else it works with a window that is no more */
	assert(!daemon_owns);
#ifdef AHEAD
	atomic {
#if BUG != 19
		if :: turn != awaited -> awaited = turn; wait_at = launched; wait_for = turn :: else fi;
#endif
		launched = begun
	}
#elif defined(CUDA)
	launched = begun;
#else
	finished = begun;
#endif
#if BUG == 7
	if :: begun == granted -> flag = USED_UP :: else -> flag = STEP fi;
#else
	if :: claim || begun == granted -> flag = USED_UP :: else -> flag = STEP fi;
#endif
#if BUG != 13 && !defined(AHEAD)
	if :: flag == USED_UP -> ring_when_done() :: else fi;
#endif
	push(flag)
}

active proctype client() {
	byte left = TOKENS, n, g, e, w_epoch, flag, mine;
	bool may, asked;
	{
	do
	:: left == 0 || d_dead -> break
	:: left > 0 && !d_dead ->
#ifdef AHEAD
		atomic { n = 1; asked = false };                /* a wish is a claim, and looked at without -DAHEAD */
#else
		atomic { if :: n = 1 :: left > 1 -> n = 2 fi; asked = false };
#endif
again:
#if BUG == 16
		mine = tables;                          /* the window as it was before hand was read */
#endif
		look_at_words();
		if
		:: !may && !d_dead ->
			c_sleeps = true;
#if BUG != 14
			ring_when_done();               /* a claim may have come when nobody told the daemon of the end */
#endif
#if BUG == 8
			d_step { may = !claim && (begun + n <= granted || (begun < granted && asked && epoch != w_epoch)) };    /* may it begin? no more */
#elif BUG != 2
			look_at_words();                /* the last look: all of it again, for a grant may have come and allow less */
#endif
			if
			:: !may -> atomic { (c_bell || d_dead) -> c_bell = false }      /* asleep until the bell, or the socket hangs up */
			:: else
			fi;
			c_sleeps = false;
			if :: d_dead -> break :: else -> goto again fi
		:: d_dead -> break
		:: may && !d_dead ->
			d_step { if :: begun + n > g -> n = g - begun :: else fi };      /* a part is better than nothing */
			atomic {
				if
#if BUG == 1
				:: epoch == e -> begun = begun + n                      /* does not look at the claim */
#elif BUG == 6
				:: !claim -> begun = begun + n                          /* does not look at the epoch */
#else
				:: !claim && epoch == e -> begun = begun + n            /* the swap succeeded */
#endif
				:: else -> goto again
				fi
			}
		fi;
		want = 0;
#if BUG != 16
		mine = tables;                                  /* base, table, live_max: once begun they stand still */
#endif
		step();
		left = left - n
	od;
	c_over = true
	} unless { c_dead }
}

active proctype device() {
end:	do
#ifdef AHEAD
	:: atomic { !c_runs && finished < launched && !stopped && !c_gone ->
		assert(!d_runs);                                /* else both devices are in the tables */
		assert(turned >= turn || finished < boundary);  /* else it works by a table that is not there yet */
		c_runs = true }
	:: atomic { c_runs -> c_runs = false; finished = (finished < wait_at && wait_at < launched -> wait_at : launched) }
	:: atomic { notify && finished == launched && !c_gone -> notify = false; d_bell = true }
#elif defined(CUDA)
	:: atomic { finished < launched && !c_gone -> assert(!daemon_owns); finished = launched }
	:: atomic { notify && finished == launched && !c_gone -> notify = false; d_bell = true }
#endif
#ifdef AHEAD
	:: atomic { c_dead && !c_gone && !c_runs -> c_gone = true }
#else
	:: atomic { c_dead && !c_gone -> c_gone = true }        /* the driver has torn the process down */
#endif
	od
}

#ifdef AHEAD
active proctype daemon_device() {
end:	do
#if BUG == 20
	:: atomic { flying && !d_runs && !device_done && !d_dead ->
#elif BUG == 22
	:: atomic { flying && !d_runs && !device_done && finished >= boundary && !d_dead ->
#else
	:: atomic { flying && !d_runs && !device_done && (finished >= boundary || c_gone) && !d_dead ->         /* who is gone is let through */
#endif
		assert(!c_runs);
		assert(c_gone || finished == boundary);         /* else it folds what is not there yet */
		d_runs = true }
	:: atomic { d_runs && !d_dead -> d_runs = false; turned = turn; device_done = true }
	:: atomic { d_dead -> d_runs = false;
#if BUG != 21
		turned = 255;                                   /* the client's thread that waits for the hang-up */
#endif
		break }
	od
}
#endif

/* --- the daemon --------------------------------------------------------------------------------------------------------------- */

inline publish() {
#if BUG == 15
	atomic { claim = false; next(epoch) };          /* the hand before the window */
#endif
	atomic { granted = b + g; daemon_owns = claim };        /* without a claim this alone hands it over */
#if BUG == 17
	atomic { begun = b; claim = false; daemon_owns = false; next(epoch) };  /* a store: what if the client has begun since? */
#elif BUG != 15 && BUG != 11
	atomic { claim = false; daemon_owns = false; next(epoch) };     /* a swap: begun stays as it is */
#elif BUG == 11
	atomic { claim = false; daemon_owns = false };
#endif
#if BUG != 4
	if :: c_sleeps -> c_bell = true :: else fi
#endif
}

inline look() {                 /* at the words of a session that may be the daemon's */
	d_step { b = begun; wanted = claim };           /* hand */
	if
#ifdef AHEAD
	:: flying                                               /* one turn at a time */
	:: !flying && (wanted || b == granted) && finished < b  /* refused */
#if BUG == 23
	:: !flying && (wanted || b == granted) ->
#else
	:: !flying && (wanted || b == granted) && launched == b ->      /* not while step_begin still reads the window */
#endif
		atomic {
			assert(c_gone || claim || begun == granted);
			daemon_owns = true; next(tables);
			turn++; boundary = b; flying = true;
			if :: g = 1 :: g = W fi
		};
		publish()
	:: !flying && (wanted || b == granted) && finished == b ->
#elif BUG == 3
	:: wanted || b == granted ->
#else
	:: (wanted || b == granted) && finished == b ->
#endif
		atomic {
			assert(c_gone || (claim || begun == granted) && finished == begun);
#ifdef AHEAD
			assert(c_gone || !c_runs && !d_runs);
#endif
			daemon_owns = true; next(tables);
			if :: g = 1 :: g = W fi
		};
		publish()
	:: else
	fi
}

inline take() {
	d_step {
		record = sq[sq_head % N];
		assert(record != NONE);
		sq[sq_head % N] = NONE  /* so that a record that was not written yet is seen as such */
	};
	next(sq_head);
	if
	:: record == WANT -> claim = true; look()
	:: record == USED_UP -> look()
	:: else
	fi
}

active proctype ebbd() {
	byte b, g, record;
	bool wanted;
	{
end:	do
#ifdef AHEAD
	:: device_done -> atomic { device_done = false; flying = false }; look()
	:: c_gone && !flying -> daemon_owns = true; freed = true; break
#else
	:: c_gone -> daemon_owns = true; freed = true; break    /* all its pages return to the pool */
#endif
	:: !c_gone && fill > 0 && !rang -> take()
	:: !c_gone && pressure > 0 && !rang -> pressure--; claim = true; look()
	:: !c_gone && fill == 0 && !rang ->
		d_sleeps = true;
#if BUG != 5
		if                                              /* the last look */
		:: fill == 0 ->
#endif
endw:			if
#ifdef AHEAD
			:: atomic { (d_bell || (c_gone && !flying) || pressure > 0 || device_done) -> d_bell = false }
#else
			:: atomic { (d_bell || c_gone || pressure > 0) -> d_bell = false }
#endif
#ifdef TIMER
			:: claim && finished == begun           /* it has a claim open: it looks now and then */
#endif
			fi
#if BUG != 5
		:: else
		fi;
#endif
		d_sleeps = false;
#if BUG != 12
		look()                                          /* the doorbell may have been the device's */
#endif
	od
	} unless { d_dead }
}

#ifdef CRASH
active proctype killer() {
	if
	:: c_dead = true
	:: d_dead = true
	:: skip
	fi
}
#endif

/* Every client gets all its tokens, or is told of the daemon's death. */
ltl completes { <> (c_over || c_dead) }
/* Every claim is answered, and a dead client's memory comes back. */
ltl served { [] ((claim -> <> (!claim || d_dead || freed)) && (c_dead -> <> (freed || d_dead))) }
#ifdef AHEAD
/* What the client's device has been given gets done. */
ltl drains { [] ((launched > finished) -> <> (finished == launched || c_gone)) }
#endif
