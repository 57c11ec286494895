/* SPDX-License-Identifier: Apache-2.0
 *
 * The phase protocol as phases/, orchestrator/driver.py and sidecar/worker.py implement it (docs/protocol.md).
 *
 * Names are those of the code. A revision of etcd is a count of the writes to its key: fences only compare revisions
 * of one key for equality. A request is decided (its conditions and its content are fixed) in one step and reaches etcd
 * in a later one; in between anything may happen, which is what a delay, a stopped process and a stale mirror amount
 * to. What a process had under way when it died may still arrive (`late`), and what arrived may arrive again.
 *
 * Every fault is taken from one budget, so all combinations and orders of up to FAULTS faults are tried: an
 * orchestrator or a sidecar or a pod dies, a live lease is lost, a request is duplicated or its reply is lost, an
 * engine dies, a part takes longer than its deadline. That a dead holder's lease expires is no fault, but a certainty
 * that comes at any time.
 *
 * Left out: Warmup and Suspended (to the protocol just another phase that every member acks) and the user's wishes.
 */

#ifndef FAULTS
#define FAULTS 2
#endif
#ifndef MEMBERS
#define MEMBERS 3
#endif
#ifndef ITERATIONS
#define ITERATIONS 1
#endif

#ifdef REPLACED_POD
/* The last process is a second pod of index 0 that starts while the first one still runs. */
#define INDICES (MEMBERS - 1)
#define INDEX(p) (p == MEMBERS - 1 -> 0 : p)
#else
#define INDICES MEMBERS
#define INDEX(p) (p)
#endif

/* More than FAULTS: whatever the faults, the run must succeed. */
#ifdef REPLACED_POD
#define RESTARTS (FAULTS + 4)
#else
#define RESTARTS (FAULTS + 2)
#endif

#define ORCHESTRATORS 2

mtype = { Nothing, Start, Handoff, Rollout, Release, Train, Recover, Succeeded, Failed };
mtype = { Idle, Waiting, Sent };

typedef PhaseRecord { mtype name = Nothing; byte epoch; byte weight_version; byte world };
typedef Move { bool under_way; byte who; byte leader_fence; byte phase_fence; bool failure; PhaseRecord record };
typedef Ack { bool under_way; byte index; byte epoch; byte incarnation; byte phase_fence; byte member_fence; bool failed };

/* etcd. A modification revision of 0: the key is not there. */
PhaseRecord phase;
PhaseRecord before;
byte phase_modified;
byte leader_created, leader_writes, leader_identity;
byte member_modified[INDICES], member_writes[INDICES], member_incarnation[INDICES];
byte ack_epoch[INDICES], ack_incarnation[INDICES];
bool ack_failed[INDICES];

/* The network. */
Ack late_ack;
Move late_move;
byte faults = FAULTS;

bool expired;

/* The orchestrators' disk. */
byte durable, batches;

/* The processes, as far as others or assertions see them. */
byte leadership[ORCHESTRATORS];
byte incarnation[3], membership[MEMBERS], incarnations;
bool lost[MEMBERS];
bool engine[MEMBERS], trainer[MEMBERS], loaded[MEMBERS], serving[MEMBERS];

/* What has been, for assertions only: the newest epoch that each index acked well. */
byte acked[INDICES];

#define over (phase.name == Succeeded || phase.name == Failed)

/* Fences: a mutant is one of these taken away. */
#ifdef NO_LEADER_FENCE_IN_MOVE
#define leader_fence_holds(m) true
#else
#define leader_fence_holds(m) (leader_created == m.leader_fence)
#endif
#ifdef NO_PHASE_FENCE_IN_MOVE
#define phase_fence_holds_in_move(m) true
#else
#define phase_fence_holds_in_move(m) (phase_modified == m.phase_fence)
#endif
#ifdef NO_PHASE_FENCE_IN_ACK
#define phase_fence_holds_in_ack(m) true
#else
#define phase_fence_holds_in_ack(m) (phase_modified == m.phase_fence)
#endif
#ifdef NO_MEMBER_FENCE_IN_ACK
#define member_fence_holds(m) true
#else
#define member_fence_holds(m) (member_modified[m.index] == m.member_fence)
#endif
#ifdef NO_FENCE_IN_LEAD
#define leader_is_free true
#else
#define leader_is_free (leader_created == 0)
#endif

inline copy(to, from) {
    to.name = from.name; to.epoch = from.epoch; to.weight_version = from.weight_version; to.world = from.world
}

inline copy_move(to, from) {
    to.under_way = true; to.who = from.who; to.leader_fence = from.leader_fence; to.phase_fence = from.phase_fence;
    to.failure = from.failure; copy(to.record, from.record)
}

inline copy_ack(to, from) {
    to.under_way = true; to.index = from.index; to.epoch = from.epoch; to.incarnation = from.incarnation;
    to.phase_fence = from.phase_fence; to.member_fence = from.member_fence; to.failed = from.failed
}

inline clear_move(m) {
    m.under_way = false; m.who = 0; m.leader_fence = 0; m.phase_fence = 0; m.failure = false;
    m.record.name = Nothing; m.record.epoch = 0; m.record.weight_version = 0; m.record.world = 0
}

inline clear_ack(m) {
    m.under_way = false; m.index = 0; m.epoch = 0; m.incarnation = 0; m.phase_fence = 0; m.member_fence = 0;
    m.failed = false
}

/* Rules 2, 4 and 5 where they are at stake: when a phase record is written. */
inline check_move(m) {
    assert(leader_created == m.leader_fence);                                   /* 2: only the leader moves it */
    assert(m.record.epoch == phase.epoch + 1);                                  /* 2: epoch only grows, by one */
    assert(!over);                                                              /* nothing follows the end */
    if
    :: m.failure ->
        assert(m.record.name == Recover && m.record.world == phase.world + 1);  /* 4: failure -> Recover, world + 1 */
        assert(m.record.weight_version <= durable)                              /* 5: back to what is on disk */
    :: else ->
        assert(phase.name == Nothing || m.record.world == phase.world);
        assert(m.record.weight_version == phase.weight_version + (phase.name == Train -> 1 : 0));   /* 5 */
        k = 0;
        do
        :: k < INDICES ->
            assert(phase.name == Nothing || phase.name == Rollout || acked[k] == phase.epoch);  /* 4: the barrier */
            k++
        :: else -> break
        od
    fi;
    k = 0
}

/* `move` at etcd: sets `written`. */
inline commit_move(m) {
    if
    :: leader_fence_holds(m) && phase_fence_holds_in_move(m) ->
        printf("EVENT move %d %e %d\n", m.who, m.record.name, m.record.epoch);
        check_move(m);
        copy(before, phase);
        copy(phase, m.record);
        phase_modified++;
        written = true
    :: else ->
        printf("EVENT fenced-move %d\n", m.who);
        written = false
    fi
}

/* `Membership.ack` at etcd: sets `written`. */
inline commit_ack(m) {
    if
    :: phase_fence_holds_in_ack(m) && member_fence_holds(m) ->
        printf("EVENT ack %d %d %d\n", m.index, m.incarnation, m.epoch);
        assert(m.epoch == phase.epoch);                                         /* 3: of the phase that is */
        assert(member_modified[m.index] == m.member_fence
               && member_incarnation[m.index] == m.incarnation);                /* 3: by the member that is */
        ack_epoch[m.index] = m.epoch;
        ack_incarnation[m.index] = m.incarnation;
        ack_failed[m.index] = m.failed;
        acked[m.index] = (m.failed -> acked[m.index] : m.epoch);
        written = true
    :: else ->
        printf("EVENT fenced-ack %d %d\n", m.index, m.incarnation);
        written = false
    fi
}

inline delete_member(i) {
    printf("EVENT member-gone %d\n", i);
    if
    :: ack_incarnation[i] == member_incarnation[i] -> ack_epoch[i] = 0; ack_incarnation[i] = 0; ack_failed[i] = false
    :: else
    fi;
    member_modified[i] = 0; member_incarnation[i] = 0
}

proctype Network() {
    byte k;
    bool written;
    do
    /* The lease of a dead leader expires; a live one's is lost. */
    :: atomic { !over && leader_created != 0 && (leadership[leader_identity] != leader_created || faults > 0) ->
        if
        :: leadership[leader_identity] == leader_created -> faults--
        :: else
        fi;
        printf("EVENT leader-gone\n"); leader_created = 0; leader_identity = 0 }
    :: atomic { late_ack.under_way ->
        printf("EVENT late\n"); commit_ack(late_ack); clear_ack(late_ack); written = false }
    :: atomic { late_move.under_way ->
        printf("EVENT late\n"); commit_move(late_move); clear_move(late_move); written = false; k = 0 }
    od
}

/* `first_phase` and `next_phase`: decides `following` from `seen` and the disk. */
inline decide_next() {
    pending.failure = false;
    copy(pending.record, seen);
    pending.record.epoch = seen.epoch + 1;
    if
    :: seen.name == Nothing ->
        pending.record.name = Start; pending.record.world = 1; pending.record.weight_version = durable
    :: seen.name == Start || seen.name == Recover ->
        pending.record.name = (batches > seen.weight_version -> Train : Handoff)
    :: seen.name == Handoff -> pending.record.name = Rollout
    :: seen.name == Rollout -> pending.record.name = (seen.weight_version >= ITERATIONS -> Succeeded : Release)
    :: seen.name == Release ->
        batches = (batches > seen.weight_version -> batches : seen.weight_version + 1);
        pending.record.name = Train
    :: seen.name == Train ->
        durable = (durable > seen.weight_version -> durable : seen.weight_version + 1);
        pending.record.name = Handoff; pending.record.weight_version = seen.weight_version + 1
    fi
}

inline decide_recovery() {
    pending.failure = true;
    pending.record.epoch = seen.epoch + 1;
    pending.record.name = Recover;
    pending.record.world = seen.world + 1;
    pending.record.weight_version = durable
}

/* `Attendance.begin`: a new world, and the Release after a Rollout's losses, begin with whoever is a member. */
inline remember_incarnations() {
    k = 0;
    do
    :: k < INDICES ->
        if
        :: (pending.record.name == Start || pending.record.name == Recover || pending.record.name == Release
            || expected[k] == 0) -> expected[k] = member_incarnation[k]
        :: else
        fi;
        k++
    :: else -> break
    od;
    k = 0
}

/* `barrier.counted` and `barrier.losses`. In the Release a member that went missing in the Rollout is waited for. */
#ifdef ACK_COUNTS_FOR_ITS_INDEX
#define done(i) (ack_epoch[i] == seen.epoch)
#else
#define done(i) (ack_epoch[i] == seen.epoch && ack_incarnation[i] == member_incarnation[i])
#endif
#define awaited(i) (seen.name == Release && expected[i] == 0)
#define bad(i) \
    ((done(i) && ack_failed[i]) || (member_incarnation[i] == 0 && !awaited(i)) \
     || (expected[i] != 0 && member_incarnation[i] != expected[i]))
#define there(i) (member_modified[i] != 0)
#if INDICES == 3
#define any_bad (bad(0) || bad(1) || bad(2))
#define all_bad (bad(0) && bad(1) && bad(2))
#define all_done (done(0) && done(1) && done(2))
#define all_there (there(0) && there(1) && there(2))
#elif INDICES == 2
#define any_bad (bad(0) || bad(1))
#define all_bad (bad(0) && bad(1))
#define all_done (done(0) && done(1))
#define all_there (there(0) && there(1))
#else
#define any_bad bad(0)
#define all_bad bad(0)
#define all_done done(0)
#define all_there there(0)
#endif
/* `_verdict`: a Rollout goes on as long as one member is left (8). */
#define has_failed (seen.name == Rollout -> all_bad : any_bad)
#ifdef NO_BARRIER
#define complete true
#else
#define complete (seen.name == Rollout || all_done)
#endif

#define attending (fence != 0 && stage == Idle && !over)

inline send_move() {
    remember_incarnations();
    pending.under_way = true; pending.who = o; pending.leader_fence = fence; pending.phase_fence = seen_modified;
    stage = Sent;
    printf("EVENT send-move %d %e %d\n", o, pending.record.name, pending.record.epoch)
}

inline forget() {
    copy(seen, nothing); seen_modified = 0; fence = 0; leadership[o] = 0; clear_move(pending); stage = Idle;
    k = 0;
    do
    :: k < INDICES -> expected[k] = 0; k++
    :: else -> break
    od;
    k = 0
}

proctype Orchestrator(byte o) {
    PhaseRecord seen, nothing;
    Move pending;
    byte seen_modified, fence, expected[INDICES], k;
    bool written;
    mtype stage = Idle;

    do
    /* `lead`. The mirror may not have shown us the last move yet. */
    :: atomic { stage == Idle && fence == 0 && !over && leader_is_free ->
        if
        :: copy(seen, phase); seen_modified = phase_modified
        :: phase_modified > 0 && faults > 0 -> faults--; copy(seen, before); seen_modified = phase_modified - 1
        fi;
        printf("EVENT lead %d %d\n", o, seen_modified);
        if
        :: leader_created == 0 -> leader_writes++; leader_created = leader_writes
        :: else
        fi;
        leader_identity = o; fence = leader_created; leadership[o] = fence;
        assert(leadership[1 - o] != fence);                                     /* 2: one leader at a time */
        remember_incarnations() }
    /* `_attend`, then `next_phase`. */
    :: atomic { attending && seen.name == Nothing -> decide_next(); stage = Waiting }
    :: atomic { attending && seen.name != Nothing && has_failed -> decide_recovery(); stage = Waiting }
    :: atomic { attending && seen.name != Nothing && !has_failed && complete -> decide_next(); send_move() }
    :: atomic { attending && seen.name != Nothing && !has_failed && !complete && faults > 0 ->
        faults--; decide_recovery(); stage = Waiting }
#ifndef NO_DEADLINE
    :: atomic { attending && seen.name != Nothing && !has_failed && !complete && expired ->
        expired = false; decide_recovery(); stage = Waiting }
#endif
#ifdef LOST_LEADERSHIP_FAILS_THE_RUN
    :: atomic { attending && seen.name != Nothing && faults > 0 ->
        faults--; decide_recovery(); pending.record.name = Failed; send_move() }
#endif
    /* `_all_members`. */
    :: atomic { stage == Waiting && all_there && !over ->
        assert(pending.record.world <= 1 + RESTARTS);
        send_move() }
    /* `move` reaches etcd; it may be duplicated. Of a lost reply `commit` learns by asking until it knows. */
    :: atomic { stage == Sent ->
        if
        :: true
        :: faults > 0 && !late_move.under_way -> faults--; copy_move(late_move, pending)
        fi;
        commit_move(pending);
        if
        :: written ->
            copy(seen, pending.record); seen_modified = phase_modified; clear_move(pending); stage = Idle;
            written = false
        :: else ->
            if
            :: leader_created == fence -> leader_created = 0; leader_identity = 0
            :: else
            fi;
            printf("EVENT orchestrator-exits %d\n", o);
            forget()
        fi }
    /* The process dies. */
    :: atomic { fence != 0 && faults > 0 && !over ->
        faults--;
        printf("EVENT orchestrator-died %d\n", o);
        if
        :: true
        :: stage == Sent && !late_move.under_way -> copy_move(late_move, pending)
        fi;
        forget() }
    od
}

#define holder_is_dead(i) \
    (member_modified[i] != 0 && member_incarnation[i] != incarnation[0] && member_incarnation[i] != incarnation[1] \
     && member_incarnation[i] != incarnation[2])
#define replaced(p) (member_modified[INDEX(p)] != 0 && member_incarnation[INDEX(p)] != incarnation[p])
#ifdef JOIN_REPLACES_ANYONE
#define may_join(p) true
#define knows_its_place(p) true
#else
/* The mirror is read in etcd's order: who sees a phase has seen every key that was written before it. */
#define knows_its_place(p) (!replaced(p))
/* A new process takes the place; one that had it takes it back only from nobody. */
#define may_join(p) (membership[p] == 0 || !replaced(p))
#endif

inline make_ack(is_failed) {
    ack.under_way = true; ack.index = i; ack.epoch = epoch; ack.incarnation = incarnation[p];
    ack.phase_fence = phase_seen; ack.member_fence = membership[p]; ack.failed = is_failed
}

inline rest() { part = Nothing; phase_seen = 0; hung = false; clear_ack(ack) }

/* torchrun's agents start all trainers anew when one is gone. */
inline restart_trainers() {
    k = 0;
    do
    :: k < MEMBERS -> loaded[k] = false; trainer[k] = false; k++
    :: else -> break
    od;
    k = 0
}

#ifdef ROLLOUT_WITHOUT_HANDOFF
#define serves(p) engine[p]
#else
/* The engine has the weights of a Handoff that this process saw through. */
#define serves(p) (engine[p] && serving[p])
#endif

/* `Switch`: who holds the device when the part begins, and when it is done. */
inline begin_part() {
    if
    :: part == Start || part == Recover || (part == Handoff && !engine[p]) ->
#ifndef ENGINE_STARTS_BESIDE_THE_TRAINER
        trainer[p] = false;                                                     /* `Offload` */
#endif
        assert(!trainer[p]);                                                    /* 1: also where an engine starts */
        engine[p] = true; serving[p] = false
    :: part == Handoff && engine[p] -> serving[p] = false
    :: part == Rollout -> assert(!serves(p) || !trainer[p])                     /* 1 */
    :: part == Train ->
#ifndef NO_RELEASE_BEFORE_TRAIN
        /* A part that was given up half way may have left the engine on the device. */
        engine[p] = false;
#endif
        assert(!engine[p]);                                                     /* 1 */
        trainer[p] = loaded[p]
    :: else
    fi
}

inline finish_part() {
    if
    :: part == Start || part == Recover -> engine[p] = false; loaded[p] = true; trainer[p] = true; make_ack(false)
    :: part == Handoff -> trainer[p] = false; serving[p] = loaded[p] && engine[p]; make_ack(!serving[p])
    :: part == Rollout -> make_ack(true)
    :: part == Release -> engine[p] = false; make_ack(false)
    :: part == Train -> make_ack(!loaded[p])
    fi
}

/* A new process of the same pod follows. An ack that was under way may arrive later. */
inline die() {
    printf("EVENT member-died %d\n", p);
    if
    :: true
    :: part != Nothing && part != Rollout && !late_ack.under_way ->
        finish_part(); copy_ack(late_ack, ack); printf("EVENT late-ack %d\n", p)
    fi;
    rest();
    engine[p] = false; serving[p] = false; membership[p] = 0; lost[p] = false; joined = false; epoch = 0;
    incarnations++; incarnation[p] = incarnations
}

proctype Member(byte p) {
    Ack ack;
    byte i, phase_seen, epoch, k;
    bool written, joined, hung;
    mtype part = Nothing;

    i = INDEX(p);
#ifdef REPLACED_POD
    if
    :: p != MEMBERS - 1
    :: atomic { p == MEMBERS - 1 && !over -> printf("EVENT second-pod %d\n", p) }
    fi;
#endif
    do
    /* `join`. */
    :: atomic { !joined && !over && may_join(p) ->
        member_writes[i]++; member_modified[i] = member_writes[i]; member_incarnation[i] = incarnation[p];
        membership[p] = member_modified[i]; lost[p] = false; joined = true;
        /* `_keep_acked`: an ack that was lost with the place is written again. */
        epoch = (part == Nothing -> 0 : epoch);
        printf("EVENT join %d %d %d\n", p, i, incarnation[p]) }
    :: atomic { !joined && !over && !may_join(p) ->
        printf("EVENT fenced-join %d\n", p);
#ifdef REPLACED_POD
        if
        :: p == 0 -> engine[p] = false; trainer[p] = false; incarnation[p] = 0; break   /* nobody starts it again */
        :: else
        fi;
#endif
        die() }
    /* `_follow`. */
#ifdef LOST_LEASE_UNNOTICED_IN_A_PART
    :: atomic { joined && part == Nothing && lost[p] && !over -> joined = false }
#else
    /* `_keep_place`: what is under way goes on, and is acked with the next place. */
    :: atomic { joined && lost[p] && !over -> joined = false }
#endif
#ifndef JOIN_REPLACES_ANYONE
    :: atomic { joined && part == Nothing && !lost[p] && replaced(p) && !over -> joined = false }
#endif
    :: atomic { joined && part == Nothing && !lost[p] && knows_its_place(p) && phase.epoch > epoch && !over ->
        part = phase.name; epoch = phase.epoch; phase_seen = phase_modified;
        printf("EVENT see %d %d\n", p, epoch);
        begin_part() }
    /* `_take_part`: the phase moves on, or the part is done and its ack reaches etcd, perhaps twice. */
    :: atomic { part != Nothing && phase_modified != phase_seen && !over -> rest() }
    :: atomic { part != Nothing && joined && !hung && (part != Rollout || !serves(p)) && !over ->
        finish_part();
        if
        :: true
        :: faults > 0 && !late_ack.under_way -> faults--; copy_ack(late_ack, ack); printf("EVENT late-ack %d\n", p)
        fi;
        commit_ack(ack);
        rest(); written = false }
    /* etcd does not answer: it may or may not be written, and we join again. */
    :: atomic { (part != Nothing && joined && !hung && (part != Rollout || !serves(p)) && faults > 0
                 && !late_ack.under_way && !over) ->
        faults--; printf("EVENT late-ack %d\n", p);
        finish_part(); copy_ack(late_ack, ack); rest(); joined = false }
    /* The lease is lost, with the key if it is still ours. */
    :: atomic { joined && faults > 0 && !lost[p] && !over ->
        faults--; lost[p] = true; printf("EVENT lease-lost %d\n", p);
        if
        :: membership[p] == member_modified[i] -> delete_member(i)
        :: else
        fi }
    /* A part that never ends: only a deadline does. */
    :: atomic { part != Nothing && part != Rollout && !hung && faults > 0 && !over ->
        faults--; hung = true; printf("EVENT hangs %d\n", p) }
    /* The lease of a dead holder expires. */
    :: atomic { p < INDICES && holder_is_dead(p) && !over -> delete_member(p) }
    /* The engine dies; the sidecar's process dies, or its whole pod. */
    :: atomic { faults > 0 && engine[p] && !over -> faults--; engine[p] = false; printf("EVENT engine-died %d\n", p) }
    :: atomic { joined && faults > 0 && !over ->
        faults--;
        die();
        if
        :: true
        :: restart_trainers()
        fi }
    od
}

/* 9: when nothing else can happen, a deadline passes, and then something can. */
proctype Clock() {
    do
    :: atomic { timeout && !over && !expired -> expired = true }
    :: atomic { timeout && !over && expired -> assert(false) }
    od
}

init {
    byte n;
    atomic {
        run Network();
        run Clock();
        run Orchestrator(0);
        run Orchestrator(1);
        do
        :: n < MEMBERS -> incarnation[n] = n + 1; run Member(n); n++
        :: else -> break
        od;
        n = 0;
        incarnations = MEMBERS
    }
}

ltl succeeds { <> (phase.name == Succeeded) }
ltl stays { [] ((phase.name == Succeeded) -> [] (phase.name == Succeeded)) }
