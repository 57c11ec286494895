# SPDX-License-Identifier: Apache-2.0
"""What Tandem's processes tell Prometheus: every metric, declared once. docs/metrics.md is made from this."""

from dataclasses import dataclass
from enum import StrEnum
from math import prod

from tandem_api.messages.phases import PhaseName
from tandem_api.messages.work import Finish
from tandem_api.utilisation import Use


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Unit(StrEnum):
    """Base units; a metric of seconds or bytes says so in its name."""

    SECONDS = "seconds"
    BYTES = "bytes"
    TIMESTAMP = "Unix seconds"
    TOKENS = "tokens"
    RATIO = "ratio"
    NUMBER = "number"


class Process(StrEnum):
    """Who exposes a metric. Orchestrator and sidecar do on port 9400 of their pod, the operator on its HTTP port."""

    ORCHESTRATOR = "orchestrator"
    SIDECAR = "sidecar"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Label:
    """A label. ``values`` are all it can have; without them it has at most ``most``, or one for each hybrid pod."""

    name: str
    help: str
    values: tuple[str, ...] = ()
    most: int | None = None

    def count(self, members: int) -> int:
        """The most values that it has in a job with ``members`` hybrid pods."""
        return len(self.values) or self.most or members


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of time series. ``buckets`` are the upper bounds of a histogram."""

    name: str
    kind: Kind
    unit: Unit
    process: Process
    help: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()

    def series(self, members: int) -> int:
        """The most time series that one process exposes of it, in a job with ``members`` hybrid pods."""
        each = len(self.buckets) + 3 if self.kind is Kind.HISTOGRAM else 1
        return each * prod(label.count(members) for label in self.labels)


OTHER = "other"
SWITCH_STEPS = (
    *(
        "drain",
        "offload",
        "sleep",
        "stop",
        "engineStart",
        "wakeWeights",
        "transfer",
        "finish",
        "verify",
        "wakeCache",
        "probe",
    ),
    OTHER,
)
ACTIVITIES = ("Waiting", *(phase.value for phase in PhaseName))
"""What ``tandem_member_activity`` counts: 0 is the wait for the others, then the phases in their order."""

_SHORT = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_RECONCILE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

PHASE_LABEL = Label("phase", "name of a phase", tuple(PhaseName))
MEMBER_LABEL = Label("member", "completion index of a hybrid pod")
_USE = Label("use", "what the accelerators were held for (docs/utilisation.md)", tuple(Use))
_STEP = Label("step", "step of a switch", SWITCH_STEPS)
_DIRECTION = Label("direction", "to whom the accelerators change", ("toTrain", "toRollout"))
_STATISTIC = Label("statistic", "of all that was measured", ("mean", "max"))
_STATE = Label("state", "state of a trajectory", ("finished", "partial"))
_SCORED = Label("outcome", "whether the sample got a score", ("scored", "unscored"))
_FINISH = Label("finish", "why a segment ended", tuple(Finish))


def _of(process: Process, kind: Kind, name: str, unit: Unit, help: str, *labels: Label) -> Metric:
    return Metric(name, kind, unit, process, help, labels, _SHORT if kind is Kind.HISTOGRAM else ())


def _orchestrator(kind: Kind, name: str, unit: Unit, help: str, *labels: Label) -> Metric:
    return _of(Process.ORCHESTRATOR, kind, name, unit, help, *labels)


def _sidecar(kind: Kind, name: str, unit: Unit, help: str, *labels: Label) -> Metric:
    return _of(Process.SIDECAR, kind, name, unit, help, *labels)


# Phases and switches

PHASE = _orchestrator(Kind.GAUGE, "tandem_phase", Unit.NUMBER, "1 for the phase that the job is in.", PHASE_LABEL)
PHASE_STARTED = _orchestrator(
    Kind.GAUGE, "tandem_phase_start_timestamp_seconds", Unit.TIMESTAMP, "When the phase began."
)
PHASE_DEADLINE = _orchestrator(
    Kind.GAUGE,
    "tandem_phase_deadline_timestamp_seconds",
    Unit.TIMESTAMP,
    "When the phase is given up; 0 where it has no deadline.",
)
PHASE_SECONDS = _orchestrator(
    Kind.COUNTER, "tandem_phase_seconds_total", Unit.SECONDS, "Time spent in each phase.", PHASE_LABEL
)
MEMBER_PHASE_SECONDS = _orchestrator(
    Kind.GAUGE,
    "tandem_member_phase_seconds",
    Unit.SECONDS,
    "How long a pod's own part of each phase took the last time.",
    MEMBER_LABEL,
    PHASE_LABEL,
)
BARRIER_SECONDS = _orchestrator(
    Kind.HISTOGRAM,
    "tandem_barrier_seconds",
    Unit.SECONDS,
    "Longest time that a pod waited for the others at the end of a phase.",
    PHASE_LABEL,
)
SWITCH_SECONDS = _orchestrator(
    Kind.GAUGE,
    "tandem_switch_seconds",
    Unit.SECONDS,
    "How long the last change of hands took: Release (toTrain), Handoff (toRollout).",
    _DIRECTION,
)
SWITCH_STEP_SECONDS = _orchestrator(
    Kind.HISTOGRAM, "tandem_switch_step_seconds", Unit.SECONDS, "Steps of Release and Handoff, of every pod.", _STEP
)
RESIDUAL_BYTES = _orchestrator(
    Kind.GAUGE,
    "tandem_engine_residual_bytes",
    Unit.BYTES,
    "Device memory still in use after the engine's last release, measured.",
    MEMBER_LABEL,
)
RELEASE_BUDGET_BYTES = _orchestrator(
    Kind.GAUGE, "tandem_engine_release_budget_bytes", Unit.BYTES, "spec.engine.releaseBudget."
)
RECOVERIES = _orchestrator(
    Kind.COUNTER, "tandem_recoveries_total", Unit.NUMBER, "Phases that failed and led to Recover."
)

# What the accelerators are held for

ACCELERATOR_SECONDS = _orchestrator(
    Kind.COUNTER,
    "tandem_accelerator_seconds_total",
    Unit.SECONDS,
    "Time for which a pod held its accelerators, by what they did.",
    MEMBER_LABEL,
    _USE,
)
BUSY_RATIO = _orchestrator(
    Kind.GAUGE,
    "tandem_accelerator_busy_ratio",
    Unit.RATIO,
    "Share of the whole run's held time that was rollout or training work.",
    MEMBER_LABEL,
)

# Progress and learning

ITERATION = _orchestrator(Kind.GAUGE, "tandem_iteration", Unit.NUMBER, "Iteration in progress, counted from 0.")
ITERATIONS = _orchestrator(Kind.GAUGE, "tandem_iterations", Unit.NUMBER, "spec.iterations.")
ITERATION_SECONDS = _orchestrator(
    Kind.GAUGE, "tandem_iteration_seconds", Unit.SECONDS, "How long the last iteration took."
)
WEIGHT_VERSION = _orchestrator(
    Kind.GAUGE, "tandem_weight_version", Unit.NUMBER, "Version of the newest weights; grows by one with every Train."
)
CHECKPOINT_ITERATION = _orchestrator(
    Kind.GAUGE, "tandem_checkpoint_iteration", Unit.NUMBER, "Iterations that the newest durable checkpoint covers."
)
REWARD = _orchestrator(Kind.GAUGE, "tandem_reward", Unit.NUMBER, "Mean score of the last batch, before shaping.")
ACCURACY = _orchestrator(
    Kind.GAUGE, "tandem_accuracy_ratio", Unit.RATIO, "Share of correct responses in the last batch."
)
EVALUATION_ACCURACY = _orchestrator(
    Kind.GAUGE, "tandem_evaluation_accuracy_ratio", Unit.RATIO, "Accuracy on the held-out set at its last evaluation."
)
RESPONSE_TOKENS = _orchestrator(
    Kind.GAUGE, "tandem_response_tokens", Unit.TOKENS, "Length of the last batch's responses.", _STATISTIC
)
TRAINED_TOKENS = _orchestrator(
    Kind.COUNTER, "tandem_trained_tokens_total", Unit.TOKENS, "Generated tokens that were trained on."
)
SAMPLES = _orchestrator(
    Kind.COUNTER, "tandem_samples_total", Unit.NUMBER, "Samples of closed batches, with and without a score.", _SCORED
)
STALENESS = _orchestrator(
    Kind.GAUGE,
    "tandem_segment_staleness_iterations",
    Unit.NUMBER,
    "Age of the oldest token in the last batch, in weight versions.",
)
LOGPROB_DIFFERENCE = _orchestrator(
    Kind.GAUGE,
    "tandem_logprob_difference",
    Unit.NUMBER,
    "Engine's log-prob against the trainer's for the same token and weights, in nats.",
    _STATISTIC,
)
PROBE_DIFFERENCE = _orchestrator(
    Kind.GAUGE, "tandem_probe_difference", Unit.NUMBER, "The same for the probe after the last handoff, in nats."
)
LOSS = _orchestrator(Kind.GAUGE, "tandem_loss", Unit.NUMBER, "Loss of the last Train.")
GRADIENT_NORM = _orchestrator(Kind.GAUGE, "tandem_gradient_norm", Unit.NUMBER, "Gradient norm of the last Train.")
LEARNING_RATE = _orchestrator(Kind.GAUGE, "tandem_learning_rate", Unit.NUMBER, "Learning rate of the last Train.")

# Replay buffer

BUFFER_TRAJECTORIES = _orchestrator(
    Kind.GAUGE, "tandem_buffer_trajectories", Unit.NUMBER, "Trajectories that are in no batch yet.", _STATE
)
BUFFER_TOKENS = _orchestrator(Kind.GAUGE, "tandem_buffer_tokens", Unit.TOKENS, "Their generated tokens.")
BUFFER_BYTES = _orchestrator(Kind.GAUGE, "tandem_buffer_bytes", Unit.BYTES, "Size of the replay buffer's files.")
BUFFER_FREE_BYTES = _orchestrator(
    Kind.GAUGE, "tandem_buffer_free_bytes", Unit.BYTES, "Free space of the volume that holds the replay buffer."
)
BUFFER_FULL = _orchestrator(
    Kind.GAUGE, "tandem_buffer_full", Unit.NUMBER, "1 while the volume has no room and the job waits for it."
)

# Each hybrid pod

ACTIVITY = _sidecar(
    Kind.GAUGE,
    "tandem_member_activity",
    Unit.NUMBER,
    "What this pod does: " + ", ".join(f"{number} {name}" for number, name in enumerate(ACTIVITIES)) + ".",
)
TOKENS = _sidecar(Kind.COUNTER, "tandem_tokens_total", Unit.TOKENS, "Tokens that this pod's engine generated.")
SEGMENTS = _sidecar(
    Kind.COUNTER, "tandem_segments_total", Unit.NUMBER, "Segments that this pod's engine generated.", _FINISH
)
ENGINE_REQUESTS = _sidecar(
    Kind.GAUGE, "tandem_engine_requests", Unit.NUMBER, "Trajectories that this pod's engine is generating."
)
ENGINE_UP = _sidecar(Kind.GAUGE, "tandem_engine_up", Unit.NUMBER, "1 while this pod's vLLM process runs.")
ENGINE_RESTARTS = _sidecar(
    Kind.COUNTER, "tandem_engine_restarts_total", Unit.NUMBER, "Starts of this pod's vLLM process after the first."
)

# Operator


def _operator(kind: Kind, name: str, unit: Unit, help: str, *labels: Label) -> Metric:
    return _of(Process.OPERATOR, kind, name, unit, help, *labels)


API_REQUESTS = _operator(
    Kind.COUNTER,
    "tandem_operator_api_requests_total",
    Unit.NUMBER,
    "Requests to the Kubernetes API.",
    Label("verb", "what was asked", most=8),
    Label("kind", "of which objects", most=24),
    Label("code", "HTTP status of the answer", most=16),
)
RECONCILE_SECONDS = Metric(
    "tandem_operator_reconcile_seconds",
    Kind.HISTOGRAM,
    Unit.SECONDS,
    Process.OPERATOR,
    "Time to bring one job nearer to what is wanted.",
    (Label("outcome", "how it ended", most=4),),
    _RECONCILE,
)
QUEUE_DEPTH = _operator(Kind.GAUGE, "tandem_operator_queue_depth", Unit.NUMBER, "Jobs that wait for a worker.")
JOBS = _operator(
    Kind.GAUGE,
    "tandem_operator_jobs",
    Unit.NUMBER,
    "RLJobs by phase.",
    Label("phase", "phase of the RLJob's status", most=12),
)
LEADER = _operator(Kind.GAUGE, "tandem_operator_leader", Unit.NUMBER, "1 while this replica leads.")
ETCD_UP = _operator(Kind.GAUGE, "tandem_operator_etcd_up", Unit.NUMBER, "1 while etcd can be reached.")

ALL: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""Every metric, in the order of this file."""


def of(process: Process) -> tuple[Metric, ...]:
    """The metrics of one process."""
    return tuple(metric for metric in ALL if metric.process is process)


def series_per_job(members: int) -> int:
    """The most time series of a job with ``members`` hybrid pods, over all its processes."""
    orchestrator = sum(metric.series(members) for metric in of(Process.ORCHESTRATOR))
    return orchestrator + members * sum(metric.series(members) for metric in of(Process.SIDECAR))
