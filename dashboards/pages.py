# SPDX-License-Identifier: Apache-2.0
"""The three dashboards: Fleet (all jobs), Run (one job) and Operator."""

from dashboards.panels import JOB, Page, Panel, Row, View, by, panel

from tandem_api.utilisation import WORK

_FLEET = 'namespace=~"$namespaces"'
_RUN = f'namespace="$namespace", {JOB}="$job"'
_JOB = ("namespace", JOB)
_NAME = f"{{{{namespace}}}}/{{{{{JOB}}}}}"
_WORK = "|".join(WORK)
_TO_RUN = (
    f"/d/tandem-run?var-namespace=${{__field.labels.namespace}}&var-job=${{__field.labels.{JOB}}}&${{__url_time_range}}"
)


def _utilisation(selector: str, labels: tuple[str, ...], window: str) -> str:
    held = "tandem_accelerator_seconds_total"
    work = by(labels, f'rate({held}{{{selector}, use=~"{_WORK}"}}[{window}])')
    return f"{work} / {by(labels, f'rate({held}{{{selector}}}[{window}])')}"


def _quantiles(metric: str, labels: tuple[str, ...], selector: str, legend: str) -> tuple[tuple[str, str], ...]:
    inner = by(("le", *labels), f"rate({metric}_bucket{{{selector}}}[$__rate_interval])")
    return tuple(
        (f"histogram_quantile({quantile}, {inner})", f"{legend} p{round(100 * quantile)}") for quantile in (0.5, 0.99)
    )


def _number(title: str, description: str, unit: str, expression: str, width: int = 4) -> Panel:
    return panel(title, description, unit, (expression, title), view=View.NUMBER, width=width, height=4)


FLEET = Page(
    "tandem-fleet",
    "Tandem / Fleet",
    "All jobs: what they are doing, how much of the accelerators' time is work, and which are stuck.",
    variables=(("namespaces", "Namespace", "label_values(tandem_iteration, namespace)"),),
    rows=(
        Row(
            "All jobs",
            (
                _number(
                    "Utilisation",
                    "Rollout and training work over all time held, in the last hour. Phases are booked when the one "
                    "after has ended.",
                    "percentunit",
                    _utilisation(_FLEET, (), "1h").replace("sum by () ", "sum "),
                ),
                _number("Jobs", "Jobs with an orchestrator.", "short", f"count(tandem_iteration{{{_FLEET}}})"),
                _number(
                    "Tokens",
                    "Tokens generated a second, by all engines.",
                    "suffix: tok/s",
                    f"sum(rate(tandem_tokens_total{{{_FLEET}}}[$__rate_interval]))",
                ),
                _number(
                    "Alerts",
                    "Alerts of Tandem that fire.",
                    "short",
                    'count(ALERTS{alertname=~"Tandem.*", alertstate="firing"}) or vector(0)',
                ),
                panel(
                    "Jobs by phase",
                    "As their status says; also those that wait for pods.",
                    "short",
                    (by(("phase",), "tandem_operator_jobs", "max"), "{{phase}}"),
                    view=View.BARS,
                    height=4,
                ),
            ),
        ),
        Row(
            "Each job",
            (
                panel(
                    "Utilisation",
                    "Share of the held time that was work, over the last 30 minutes.",
                    "percentunit",
                    (_utilisation(_FLEET, _JOB, "30m"), _NAME),
                    width=12,
                    link=_TO_RUN,
                ),
                panel(
                    "Progress",
                    "Iterations begun of those wanted.",
                    "percentunit",
                    (by(_JOB, f"tandem_iteration{{{_FLEET}}} / tandem_iterations{{{_FLEET}}}", "max"), _NAME),
                    view=View.BARS,
                    width=12,
                    link=_TO_RUN,
                ),
                panel(
                    "Phase",
                    "What the pods of each job do.",
                    "short",
                    (by(_JOB, f"tandem_member_activity{{{_FLEET}}}", "max"), _NAME),
                    view=View.STATES,
                    width=24,
                    link=_TO_RUN,
                ),
                panel(
                    "Time in this phase",
                    "A line that only rises is a job that is stuck.",
                    "s",
                    (f"time() - {by(_JOB, f'tandem_phase_start_timestamp_seconds{{{_FLEET}}}', 'max')}", _NAME),
                    link=_TO_RUN,
                ),
                panel(
                    "Tokens",
                    "Tokens generated a second.",
                    "suffix: tok/s",
                    (by(_JOB, f"rate(tandem_tokens_total{{{_FLEET}}}[$__rate_interval])"), _NAME),
                    link=_TO_RUN,
                ),
                panel(
                    "Reward",
                    "Mean score of the last batch.",
                    "short",
                    (by(_JOB, f"tandem_reward{{{_FLEET}}}", "max"), _NAME),
                    link=_TO_RUN,
                ),
            ),
        ),
    ),
)

RUN = Page(
    "tandem-run",
    "Tandem / Run",
    "One job: what each pod does, where its time goes, and what it learns.",
    variables=(
        ("namespace", "Namespace", "label_values(tandem_iteration, namespace)"),
        ("job", "Job", f'label_values(tandem_iteration{{namespace="$namespace"}}, {JOB})'),
    ),
    rows=(
        Row(
            "Now",
            (
                _number("Iteration", "In progress, counted from 0.", "short", f"max(tandem_iteration{{{_RUN}}})"),
                _number("Weights", "Version of the newest weights.", "short", f"max(tandem_weight_version{{{_RUN}}})"),
                _number(
                    "Utilisation",
                    "Rollout and training work over the time held, since the job began.",
                    "percentunit",
                    f"avg(tandem_accelerator_busy_ratio{{{_RUN}}})",
                ),
                _number("Reward", "Mean score of the last batch.", "short", f"max(tandem_reward{{{_RUN}}})"),
                _number(
                    "Held-out accuracy",
                    "At the last evaluation.",
                    "percentunit",
                    f"max(tandem_evaluation_accuracy_ratio{{{_RUN}}})",
                ),
                _number(
                    "Recoveries",
                    "Phases that failed, in the time shown.",
                    "short",
                    f"sum(increase(tandem_recoveries_total{{{_RUN}}}[$__range]))",
                ),
            ),
        ),
        Row(
            "Time",
            (
                panel(
                    "Phases of each pod",
                    "What each pod does; Waiting is for the others.",
                    "short",
                    (f"tandem_member_activity{{{_RUN}}}", "{{pod}}"),
                    view=View.STATES,
                    width=24,
                ),
                panel(
                    "Where the time goes",
                    "What the accelerators are held for; rollout and train are work (docs/utilisation.md).",
                    "percentunit",
                    (by(("use",), f"rate(tandem_accelerator_seconds_total{{{_RUN}}}[30m])"), "{{use}}"),
                    view=View.STACK,
                    width=12,
                ),
                panel(
                    "Held for",
                    "Seconds of all pods, in the time shown.",
                    "s",
                    (by(("use",), f"increase(tandem_accelerator_seconds_total{{{_RUN}}}[$__range])"), "{{use}}"),
                    view=View.BARS,
                    width=6,
                ),
                panel(
                    "Utilisation of each pod",
                    "Since the job began.",
                    "percentunit",
                    (by(("member",), f"tandem_accelerator_busy_ratio{{{_RUN}}}", "max"), "pod {{member}}"),
                    width=6,
                ),
                panel(
                    "Phases",
                    "Share of the time in each phase.",
                    "percentunit",
                    (by(("phase",), f"rate(tandem_phase_seconds_total{{{_RUN}}}[30m])"), "{{phase}}"),
                    view=View.STACK,
                ),
                panel(
                    "Iteration",
                    "How long the last iteration took.",
                    "s",
                    (f"max(tandem_iteration_seconds{{{_RUN}}})", "iteration"),
                ),
                panel(
                    "Tokens",
                    "Tokens generated a second, by each pod.",
                    "suffix: tok/s",
                    (by(("pod",), f"rate(tandem_tokens_total{{{_RUN}}}[$__rate_interval])"), "{{pod}}"),
                ),
            ),
        ),
        Row(
            "Switches",
            (
                panel(
                    "Switches",
                    "How long the last change of hands took.",
                    "s",
                    (by(("direction",), f"tandem_switch_seconds{{{_RUN}}}", "max"), "{{direction}}"),
                ),
                panel(
                    "Steps",
                    "Mean time of each step of a switch, over all pods, in the time shown.",
                    "s",
                    (
                        by(("step",), f"increase(tandem_switch_step_seconds_sum{{{_RUN}}}[$__range])")
                        + " / "
                        + by(("step",), f"increase(tandem_switch_step_seconds_count{{{_RUN}}}[$__range])"),
                        "{{step}}",
                    ),
                    view=View.BARS,
                ),
                panel(
                    "Slowest steps",
                    "99th percentile of each step.",
                    "s",
                    _quantiles("tandem_switch_step_seconds", ("step",), _RUN, "{{step}}")[1],
                ),
                panel(
                    "Part of each pod",
                    "How long a pod's own part of a phase took: the slowest is whom the others wait for.",
                    "s",
                    (
                        by(("member", "phase"), f'tandem_member_phase_seconds{{{_RUN}, phase!="Start"}}', "max"),
                        "pod {{member}} {{phase}}",
                    ),
                ),
                panel(
                    "Barriers",
                    "Longest wait for the slowest pod at the end of a phase.",
                    "s",
                    *_quantiles("tandem_barrier_seconds", ("phase",), _RUN, "{{phase}}"),
                ),
                panel(
                    "Memory left after release",
                    "Device memory that is still in use once the engine has let go, and the budget for it.",
                    "bytes",
                    (by(("member",), f"tandem_engine_residual_bytes{{{_RUN}}}", "max"), "pod {{member}}"),
                    (f"max(tandem_engine_release_budget_bytes{{{_RUN}}})", "budget"),
                ),
            ),
        ),
        Row(
            "Learning",
            (
                panel("Reward", "Mean score of each batch.", "short", (f"max(tandem_reward{{{_RUN}}})", "reward")),
                panel(
                    "Accuracy",
                    "Correct responses of each batch, and on the held-out set.",
                    "percentunit",
                    (f"max(tandem_accuracy_ratio{{{_RUN}}})", "batch"),
                    (f"max(tandem_evaluation_accuracy_ratio{{{_RUN}}})", "held out"),
                ),
                panel(
                    "Length of responses",
                    "Generated tokens.",
                    "suffix: tok",
                    (by(("statistic",), f"tandem_response_tokens{{{_RUN}}}", "max"), "{{statistic}}"),
                ),
                panel(
                    "Log-prob difference",
                    "Engine against trainer, for the same tokens and weights, in nats.",
                    "short",
                    (by(("statistic",), f"tandem_logprob_difference{{{_RUN}}}", "max"), "{{statistic}}"),
                    (f"max(tandem_probe_difference{{{_RUN}}})", "probe after handoff"),
                ),
                panel(
                    "Staleness",
                    "Age of the oldest token in a batch, in weight versions.",
                    "short",
                    (f"max(tandem_segment_staleness_iterations{{{_RUN}}})", "oldest token"),
                ),
                panel(
                    "Optimisation",
                    "Loss and gradient norm of each update.",
                    "short",
                    (f"max(tandem_loss{{{_RUN}}})", "loss"),
                    (f"max(tandem_gradient_norm{{{_RUN}}})", "gradient norm"),
                ),
                panel(
                    "Learning rate",
                    "Of each update.",
                    "short",
                    (f"max(tandem_learning_rate{{{_RUN}}})", "learning rate"),
                ),
                panel(
                    "Samples trained on",
                    "Generated tokens of closed batches a second.",
                    "suffix: tok/s",
                    (f"sum(rate(tandem_trained_tokens_total{{{_RUN}}}[30m]))", "tokens"),
                ),
                panel(
                    "Samples",
                    "Samples of closed batches a second, with and without a score.",
                    "ops",
                    (by(("outcome",), f"rate(tandem_samples_total{{{_RUN}}}[30m])"), "{{outcome}}"),
                ),
            ),
        ),
        Row(
            "Buffer and engines",
            (
                panel(
                    "Trajectories in the buffer",
                    "Those in no batch yet.",
                    "short",
                    (by(("state",), f"tandem_buffer_trajectories{{{_RUN}}}", "max"), "{{state}}"),
                ),
                panel(
                    "Tokens in the buffer",
                    "Generated tokens in no batch yet.",
                    "suffix: tok",
                    (f"max(tandem_buffer_tokens{{{_RUN}}})", "tokens"),
                ),
                panel(
                    "Buffer volume",
                    "Size of the buffer, and the room that is left.",
                    "bytes",
                    (f"max(tandem_buffer_bytes{{{_RUN}}})", "used"),
                    (f"min(tandem_buffer_free_bytes{{{_RUN}}})", "free"),
                ),
                panel(
                    "Requests in the engine",
                    "Trajectories that each pod generates.",
                    "short",
                    (by(("pod",), f"tandem_engine_requests{{{_RUN}}}", "max"), "{{pod}}"),
                ),
                panel(
                    "Segments",
                    "Segments that the engines generated a second, by why they ended.",
                    "ops",
                    (by(("finish",), f"rate(tandem_segments_total{{{_RUN}}}[$__rate_interval])"), "{{finish}}"),
                ),
                panel(
                    "Engines",
                    "Whether each engine runs, and how often it was started again in the time shown.",
                    "short",
                    (by(("pod",), f"tandem_engine_up{{{_RUN}}}", "max"), "{{pod}} up"),
                    (by(("pod",), f"increase(tandem_engine_restarts_total{{{_RUN}}}[$__range])"), "{{pod}} restarts"),
                ),
                panel(
                    "Volume and checkpoint",
                    "1 while the buffer's volume is full; iterations that a durable checkpoint covers.",
                    "short",
                    (f"max(tandem_buffer_full{{{_RUN}}})", "buffer full"),
                    (f"max(tandem_checkpoint_iteration{{{_RUN}}})", "checkpoint"),
                ),
            ),
        ),
    ),
)

_OPERATOR = 'namespace=~"$namespaces"'

OPERATOR = Page(
    "tandem-operator",
    "Tandem / Operator",
    "Whether the operator keeps up, and what it talks to.",
    variables=(("namespaces", "Namespace", "label_values(tandem_operator_leader, namespace)"),),
    rows=(
        Row(
            "Reconciliation",
            (
                _number(
                    "Leaders",
                    "Replicas that lead; must be 1.",
                    "short",
                    f"sum(tandem_operator_leader{{{_OPERATOR}}})",
                    8,
                ),
                _number(
                    "etcd",
                    "1 while the operator reaches etcd.",
                    "short",
                    f"max(tandem_operator_etcd_up{{{_OPERATOR}}})",
                    8,
                ),
                panel(
                    "Jobs by phase",
                    "RLJobs that the operator looks after.",
                    "short",
                    (by(("phase",), f"tandem_operator_jobs{{{_OPERATOR}}}", "max"), "{{phase}}"),
                    view=View.BARS,
                    height=4,
                ),
                panel(
                    "Queue",
                    "Jobs that wait for a worker.",
                    "short",
                    (by(("pod",), f"tandem_operator_queue_depth{{{_OPERATOR}}}", "max"), "{{pod}}"),
                ),
                panel(
                    "Time to reconcile",
                    "One look at one job.",
                    "s",
                    *_quantiles("tandem_operator_reconcile_seconds", (), _OPERATOR, "reconcile"),
                ),
                panel(
                    "Reconciliations",
                    "A second, by how they ended.",
                    "ops",
                    (
                        by(
                            ("outcome",),
                            f"rate(tandem_operator_reconcile_seconds_count{{{_OPERATOR}}}[$__rate_interval])",
                        ),
                        "{{outcome}}",
                    ),
                ),
            ),
        ),
        Row(
            "What it talks to",
            (
                panel(
                    "API requests",
                    "Requests to the Kubernetes API a second.",
                    "reqps",
                    (
                        by(
                            ("verb", "kind"),
                            f"rate(tandem_operator_api_requests_total{{{_OPERATOR}}}[$__rate_interval])",
                        ),
                        "{{verb}} {{kind}}",
                    ),
                ),
                panel(
                    "Failed API requests",
                    "Answered with an error.",
                    "reqps",
                    (
                        by(
                            ("code",),
                            f'rate(tandem_operator_api_requests_total{{{_OPERATOR}, code!~"2.."}}[$__rate_interval])',
                        ),
                        "{{code}}",
                    ),
                ),
                panel(
                    "etcd's disk",
                    "99th percentile of a write to the log; above 10 ms phases change slowly.",
                    "s",
                    _quantiles("etcd_disk_wal_fsync_duration_seconds", ("pod",), _OPERATOR, "{{pod}}")[1],
                ),
            ),
        ),
    ),
)

PAGES = (FLEET, RUN, OPERATOR)
