# SPDX-License-Identifier: Apache-2.0
"""Manifests with one mistake each, for those who must refuse them: ``tandem validate`` and the API server."""

from dataclasses import dataclass
from pathlib import Path

MANIFESTS = Path(__file__).parent / "manifests"
GOOD = ("whole", "smallest", "random")
HERE = "# here"


@dataclass(frozen=True)
class Case:
    """``old`` in a good manifest becomes ``new``; the problem is at ``field``, on the line marked ``# here``.

    ``says`` is part of the message. ``server`` is False where only Tandem can know.
    """

    name: str
    old: str
    new: str
    field: str
    says: str
    base: str = "whole"
    server: bool = True

    @property
    def text(self) -> str:
        base = (MANIFESTS / f"{self.base}.yaml").read_text()
        assert base.count(self.old) == 1, f"{self.name}: {self.old!r} occurs {base.count(self.old)} times"
        return base.replace(self.old, self.new)

    @property
    def line(self) -> int:
        (line,) = (number for number, text in enumerate(self.text.splitlines(), start=1) if HERE in text)
        return line


_METADATA = (
    Case("api version", "dev/v1alpha1", "dev/v1 # here", "apiVersion", "v1alpha1"),
    Case("kind", "kind: RLJob", "kind: RlJob # here", "kind", "must be RLJob"),
    Case("field beside spec", "\nspec:", "\nspce: {} # here\nspec:", "spce", "did you mean spec"),
    Case("no name", "metadata:\n  name: whole", "metadata: # here", "metadata.name", "is required"),
    Case("capital name", "name: whole", "name: Whole # here", "metadata.name", "lower case"),
    Case("name with a dot", "name: whole", "name: who.le # here", "metadata.name", "hyphens"),
    Case("name with a digit first", "name: whole", "name: 8b-math # here", "metadata.name", "start with a letter"),
    Case("name that is a number", "name: whole", "name: 8 # here", "metadata.name", "found 8"),
    Case("long name", "name: whole", f"name: {'n' * 41} # here", "metadata.name", "40 characters"),
    Case("namespace", "namespace: default", "namespace: De_fault # here", "metadata.namespace", "lower case"),
    Case("label value", "team: research\n  an", "team: a b # here\n  an", "metadata.labels[example.com/team]", "label"),
    Case("label key", "example.com/team: research", "a/b/c: x # here", "metadata.labels[a/b/c]", "such as team"),
    Case("annotation that is a number", 'note: "5"', "note: 5 # here", "metadata.annotations.note", "quotes"),
    Case("field of metadata", "  labels:", "  label: {} # here\n  labels:", "metadata.label", "did you mean labels"),
)

_SHAPE = (
    Case("field given twice", "seed: 1", "seed: 1\n  seed: 2 # here", "spec.seed", "line 13", server=False),
    Case("infinity", "tau: 0.1", "tau: .inf # here", "spec.algorithm.mirrorDescent.tau", "finite"),
    Case(
        "misspelt field", "iterations: 40", "iterations: 40\n  rolout: {} # here", "spec.rolout", "did you mean rollout"
    ),
    Case("snake case", "topP: 0.95", "top_p: 0.95 # here", "spec.rollout.top_p", "did you mean topP"),
    Case("field in the wrong place", "seed: 1", "maxTokens: 9 # here", "spec.maxTokens", "spec.rollout.maxTokens"),
    Case("field from elsewhere", "seed: 1", "gpus: 9 # here", "spec.gpus", "allowed here: iterations, seed"),
    Case("no iterations", "spec:\n  iterations: 40", "spec: # here", "spec.iterations", "is required: Rounds"),
    Case("empty spec field", "iterations: 40", "iterations: # here", "spec.iterations", "is required"),
    Case("number in quotes", "iterations: 40", "iterations: '40' # here", "spec.iterations", "must be an integer"),
    Case(
        "fraction of an iteration", "iterations: 40", "iterations: 4.5 # here", "spec.iterations", "must be an integer"
    ),
    Case("truth as a number", "suspend: false", "suspend: 0 # here", "spec.runPolicy.suspend", "true or false"),
    Case("truth in quotes", "skipInvalid: false", "skipInvalid: 'no' # here", "spec.data.skipInvalid", "true or false"),
    Case("mapping for a list", "extraArgs: [--verbose]", "extraArgs: {} # here", "spec.trainer.extraArgs", "a list"),
    Case(
        "list for a mapping",
        "schedule:\n    phaseDeadlines:\n      rollout: 2h\n      train: 1h30m",
        "schedule: [] # here",
        "spec.schedule",
        "a mapping",
    ),
    Case(
        "number for a string",
        "claimName: checkpoints",
        "claimName: 7 # here",
        "spec.checkpoint.volume.claimName",
        "string",
    ),
)

_BOUNDS = (
    Case("no round", "iterations: 40", "iterations: 0 # here", "spec.iterations", "greater than 0"),
    Case("rounds without end", "iterations: 40", "iterations: 1e9 # here", "spec.iterations", "at most 1000000"),
    Case("negative seed", "seed: 1", "seed: -1 # here", "spec.seed", "at least 0"),
    Case("huge number", "seed: 1", "seed: 99999999999999999999999 # here", "spec.seed", "found 1e+23"),
    Case("no tau", "tau: 0.1", "tau: 0 # here", "spec.algorithm.mirrorDescent.tau", "greater than 0"),
    Case("negative tau", "tau: 0.1", "tau: -0.1 # here", "spec.algorithm.mirrorDescent.tau", "greater than 0"),
    Case(
        "one sample", "samplesPerPrompt: 8", "samplesPerPrompt: 1 # here", "spec.rollout.samplesPerPrompt", "at least 2"
    ),
    Case("negative penalty", "weight: 0.5", "weight: -1 # here", "spec.algorithm.lengthPenalty.weight", "at least 0"),
    Case("top p", "topP: 0.95", "topP: 1.5 # here", "spec.rollout.topP", "at most 1"),
    Case("moment", "beta1: 0.9", "beta1: 1 # here", "spec.trainer.optimizer.beta1", "less than 1"),
    Case("no devices", "count: 8", "count: 0 # here", "spec.hybrid.accelerators.count", "greater than 0"),
    Case(
        "no prompts",
        "[{path: /data/prompts.jsonl}]}",
        "[]} # here",
        "spec.data.prompts",
        "at least 1 item",
        base="smallest",
    ),
    Case("empty model path", "path: /models/qwen3-8b", "path: '' # here", "spec.model.source.hf.path", "1 character"),
)

_SCALARS = (
    Case("release", "release: Sleep", "release: sleep # here", "spec.engine.release", "did you mean Sleep"),
    Case("dtype", "dtype: bfloat16", "dtype: float16 # here", "spec.model.dtype", "one of bfloat16, float32"),
    Case("optimizer", "kind: Adam", "kind: SGD # here", "spec.trainer.optimizer.kind", "one of Adam"),
    Case("verify", "verify: Names", "verify: All # here", "spec.handoff.verify", "Names, Checksums"),
    Case("relative path", "path: /data/eval", "path: data/eval # here", "spec.data.evaluation.path", "absolute path"),
    Case("duration as a number", "rollout: 2h", "rollout: 7200 # here", "spec.schedule.phaseDeadlines.rollout", "2m"),
    Case("duration in days", "rollout: 2h", "rollout: 2d # here", "spec.schedule.phaseDeadlines.rollout", "1h30m"),
    Case("no time", "rollout: 2h", "rollout: 0s # here", "spec.schedule.phaseDeadlines.rollout", "longer than 0s"),
    Case(
        "phase that is none",
        "rollout: 2h",
        "roll: 2h # here",
        "spec.schedule.phaseDeadlines.roll",
        "did you mean rollout",
    ),
    Case("unit of bytes", "releaseBudget: 4Gi", "releaseBudget: 4GB # here", "spec.engine.releaseBudget", "512Mi"),
    Case("negative bytes", "releaseBudget: 4Gi", "releaseBudget: -1 # here", "spec.engine.releaseBudget", "512Mi"),
    Case("no bucket", "bucket: 1Gi", "bucket: 0 # here", "spec.handoff.bucket", "more than 0 bytes"),
    Case("bucket of 0Gi", "bucket: 1Gi", "bucket: 0Gi # here", "spec.handoff.bucket", "more than 0 bytes"),
    Case("url", "url: http://judge:8000/v1", "url: judge:8000 # here", "spec.rewards[2].judge.url", "a URL"),
    Case(
        "callable",
        "callable: my_rewards:score",
        "callable: score # here",
        "spec.rewards[3].python.callable",
        "module:function",
    ),
    Case("reward name", "- name: math", "- name: Math # here", "spec.rewards[0].name", "lower case"),
)

_UNIONS = (
    Case(
        "no source",
        "source:\n      hf:\n        path: /models/qwen3-8b",
        "source: {} # here",
        "spec.model.source",
        "exactly one of hf",
    ),
    Case(
        "two sources",
        "source:\n",
        "source: # here\n      checkpoint: {path: /c, hf: /m}\n",
        "spec.model.source",
        "exactly one of hf",
    ),
    Case(
        "two kinds of prompts",
        "- path: /data/prompts.jsonl\n      - reas",
        "- path: /data/prompts.jsonl # here\n        reas",
        "spec.data.prompts[0]",
        "exactly one of path",
    ),
    Case(
        "warm-up of nothing",
        "warmup:\n      path: /data/long-cot.jsonl",
        "warmup: # here",
        "spec.data.warmup",
        "exactly one of path",
    ),
    Case("no objective", "{mirrorDescent: {}}", "{} # here", "spec.algorithm", "set mirrorDescent", base="smallest"),
    Case(
        "two rewards in one",
        "- name: math\n",
        "- name: math # here\n      exact: {}\n",
        "spec.rewards[0]",
        "exactly one of math",
    ),
)

_RULES = (
    Case(
        "ranks left over",
        "parallelism:\n      tensor: 4",
        "parallelism: # here\n      tensor: 3",
        "spec.trainer.parallelism",
        "must divide",
    ),
    Case("experts", "expert: 1", "expert: 16 # here", "spec.trainer.parallelism.expert", "expert x pipeline"),
    Case(
        "more than a pod has",
        "tensorParallel: 8",
        "tensorParallel: 16 # here",
        "spec.engine.tensorParallel",
        "not exceed",
    ),
    Case("uneven engine", "tensorParallel: 8", "tensorParallel: 3 # here", "spec.engine.tensorParallel", "must divide"),
    Case(
        "budget over the whole",
        "tokenBudget: 8192",
        "tokenBudget: 30001 # here",
        "spec.rollout.tokenBudget",
        "exceed maxTokens",
    ),
    Case(
        "no room for the prompt",
        "maxTokens: 30000",
        "maxTokens: 32768 # here",
        "spec.rollout.maxTokens",
        "engine.maxModelLen",
    ),
    Case(
        "minibatch over the batch",
        "batchPrompts: 32",
        "batchPrompts: 65 # here",
        "spec.algorithm.mirrorDescent.batchPrompts",
        "found 65, rollout.promptsPerIteration is 64",
    ),
    Case(
        "rising learning rate",
        "finalLearningRate: 0",
        "finalLearningRate: 1 # here",
        "spec.trainer.optimizer.finalLearningRate",
        "not exceed learningRate",
    ),
    Case(
        "reward named twice",
        "  rewards:\n    - name: math",
        "  rewards: # here\n    - name: code",
        "spec.rewards",
        "same name",
    ),
)

_KUBERNETES = (
    Case("variable that is a number", "value: INFO", "value: 1 # here", "spec.trainer.env[0].value", "a string"),
    Case(
        "variable without a name",
        "- name: NCCL_DEBUG\n        value: INFO",
        "- value: INFO # here",
        "spec.trainer.env[0].name",
        "is required",
    ),
    Case(
        "half a core",
        'cpu: "4", memory',
        "cpu: 0.5, # here\n        memory",
        "spec.trainer.resources.requests.cpu",
        "quotes",
    ),
    Case("resources", "limits: {", "limit: { # here\n", "spec.trainer.resources.limit", "did you mean limits"),
    Case(
        "pod field beside spec",
        "template:\n",
        "template:\n      nodeSelector: {} # here\n",
        "spec.hybrid.template.nodeSelector",
        "metadata, spec",
    ),
)

_RANDOM_MODEL = (
    Case(
        "family",
        "config:\n          model_type: qwen3",
        "config: # here",
        "spec.model.source.random.config.model_type",
        "is required",
        base="random",
        server=False,
    ),
    Case(
        "small vocabulary",
        "vocab_size: 64",
        "vocab_size: 4 # here",
        "spec.model.source.random.config.vocab_size",
        "at least 18",
        base="random",
        server=False,
    ),
    Case(
        "word",
        'words: ["State the final answer"]',
        "words: [<eos>] # here",
        "spec.model.source.random.tokenizer.words[0]",
        "special",
        base="random",
        server=False,
    ),
    Case(
        "alphabet",
        'characters: "0123456789+-= \\n"',
        'characters: "" # here',
        "spec.model.source.random.tokenizer.characters",
        "1 character",
        base="random",
    ),
)

BAD = (*_METADATA, *_SHAPE, *_BOUNDS, *_SCALARS, *_UNIONS, *_RULES, *_KUBERNETES, *_RANDOM_MODEL)
