# SPDX-License-Identifier: Apache-2.0
"""Run: one job."""

from dashboards.panels import Page, Row, View, number, panel
from dashboards.promql import JOB, by, quantiles

_RUN = f'namespace="$namespace", {JOB}="$job"'

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
                number("Iteration", "In progress, counted from 0.", "short", f"max(tandem_iteration{{{_RUN}}})"),
                number("Weights", "Version of the newest weights.", "short", f"max(tandem_weight_version{{{_RUN}}})"),
                number(
                    "Utilisation",
                    "Rollout and training work over the time held, since the job began.",
                    "percentunit",
                    f"avg(tandem_accelerator_busy_ratio{{{_RUN}}})",
                ),
                number("Reward", "Mean score of the last batch.", "short", f"max(tandem_reward{{{_RUN}}})"),
                number(
                    "Held-out accuracy",
                    "At the last evaluation.",
                    "percentunit",
                    f"max(tandem_evaluation_accuracy_ratio{{{_RUN}}})",
                ),
                number(
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
                    quantiles("tandem_switch_step_seconds", ("step",), _RUN, "{{step}}")[1],
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
                    *quantiles("tandem_barrier_seconds", ("phase",), _RUN, "{{phase}}"),
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
