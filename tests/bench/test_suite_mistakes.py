"""What is wrong with a suite, where it is shown, and what is hinted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from bench import ownmodel, source
from bench.draft import Draft, recipe_findings
from bench.merge import merge, nested
from bench.problems import SuiteError, format_problem, suggest
from bench.suite import check, load_suite
from tests.bench.small_suite import MOE, SCALE_M, SCALE_S, SUITES, edited, loaded, written

# name: (edit, line:col, what the message holds, what the hint holds)
BAD: dict[str, tuple[tuple[str, str], str, str, str | None]] = {
    "unknown key": (("about:", "abuot:"), "2:1", "unknown key `abuot`", "did you mean `about`?"),
    "unknown key in a technique": (("top_k: 2", "topk: 2"), "13:43", "unknown key `topk`", "did you mean `top_k`?"),
    "unknown key in a change": (
        ("precision: {kind: fp32}", "precison: {kind: fp32}"),
        "17:7",
        "unknown key `precison`",
        "did you mean `precision`?",
    ),
    "key in the wrong place": (
        ("    batching:", "    lr: 1e-3\n    batching:"),
        "9:5",
        "unknown key `lr`",
        "`lr` belongs inside `optimizer`",
    ),
    "planted effect": (
        (MOE, "change: {ffn: {kind: wasteful, dead: 8}}"),
        "13:26",
        "does work for nothing",
        "only a suite of `purpose: selftest`",
    ),
    "start from a training that is not there": (
        (MOE, "change: {ffn: {kind: moe, split: 1}, start: {kind: upcycled, horizon: 0.7}}"),
        "13:75",
        "`dense` is not trained to horizon 0.7",
        "over.horizon has 0.5, 1",
    ),
    "start from what does not fit": (
        (MOE, "change: {ffn: {kind: moe}, start: {kind: upcycled}}"),
        "13:39",
        "cannot start from `dense` at scale `s`: ffn.hidden is 96, the source's is 192",
        "split: 1",
    ),
    "start from a later arm": (
        (MOE, "against: all\n    change: {ffn: {kind: moe, experts: 4, split: 1}, start: {kind: upcycled}}"),
        "14:61",
        "starts from `all`, which must stand before `moe`",
        "move it up",
    ),
    "unknown kind": ((MOE, "change: {ffn: {kind: mo}}"), "13:26", "unknown kind 'mo'", "did you mean `moe`?"),
    "kind without its mapping": (
        ("{kind: fp32}", "fp32"),
        "17:18",
        "expected a mapping, got 'fp32'",
        "write `{kind: fp32}`",
    ),
    "kind of a data step": (
        ("[{kind: exact_dedup}]", "[exact]"),
        "22:14",
        "expected a mapping, got 'exact'",
        "exact_dedup",
    ),
    "missing key": ((", tokens: 100k}", "}"), "25:7", "missing key `tokens`", "Training tokens at horizon 1.0"),
    "missing stanza": (("suite: small\n", ""), "1:1", "missing key `suite`", "Name of the suite"),
    "bad name": (("name: fp32\n", "name: My Arm\n"), "14:11", "'My Arm' is not a name", "for example `my-arm`"),
    "long name": (("name: fp32\n", f"name: {'m' * 65}\n"), "14:11", "mm...' is not a name", "for example"),
    "bad role": (("role: claim", "role: clam"), "19:11", "'clam' is not allowed here", "did you mean `claim`?"),
    "text for a number": (("experts: 8", "experts: many"), "13:40", "'many' is not a count", None),
    "fraction for a count": (("experts: 8", "experts: 8.5"), "13:40", "8.5 is not a whole number", None),
    "list for a number": (("width: 64", "width: [64]"), "25:35", "expected a whole number, got a list", None),
    "boolean for a number": (("layers: 2", "layers: true"), "25:25", "expected a whole number, got true", None),
    "boolean in a change": (("experts: 4", "experts: true"), "21:33", "expected a whole number, got true", None),
    "number for text": (
        ("about: A test.", "about: 12"),
        "2:8",
        "expected text, got 12",
        'write it in quotes: "12"',
    ),
    "null for a mapping": ((MOE, "change: {ffn: null}"), "13:19", "expected a mapping, got null", None),
    "huge number": (
        ("width: 64", "width: 9999999999"),
        "25:35",
        "9999999999 is out of bounds: it must be at most 131072",
        None,
    ),
    "beyond all numbers": (
        ("layers: 2", "layers: 9e99"),
        "25:25",
        "9e+99 is out of bounds: it must be at most 1024",
        None,
    ),
    "beyond all numbers, in a kind": (
        ("experts: 8", "experts: 9e99"),
        "13:40",
        "9e+99 is out of bounds: it must be at most 4096",
        None,
    ),
    "beyond all numbers, where there may be none": (
        ("layers: 2", "kv_heads: 9e99, layers: 2"),
        "25:27",
        "9e+99 is out of bounds: it must be at most 131072",
        None,
    ),
    "beyond all numbers, in a list": (
        (MOE, "change: {objective: {kind: layer_skip, exits: [9e99]}}"),
        "13:52",
        "9e+99 is out of bounds: it must be at most 1024",
        None,
    ),
    "beyond all numbers, with no bound of its own": (
        ("tokens: 100k", "tokens: 9e99"),
        "25:57",
        "9e+99 is out of bounds: it must be at most 1000000000000000",
        None,
    ),
    "negative number": (
        ("tokens: 100k", "tokens: -1"),
        "25:57",
        "-1 is out of bounds: it must be greater than 0",
        None,
    ),
    "zero": (("layers: 2", "layers: 0"), "25:25", "0 is out of bounds: it must be greater than 0", None),
    "below a bound of its own": (
        ("evaluate:", "timing: {warmup: -1}\nevaluate:"),
        "29:18",
        "-1 is out of bounds: it must be at least 1",
        None,
    ),
    "not a number": (("tokens: 100k", "tokens: .nan"), "25:57", ".nan is not a finite number", None),
    "unknown unit": (("tokens: 100k", "tokens: 100 bananas"), "25:57", "unknown suffix 'bananas'", None),
    "a trial on the study's own seed": (
        ("evaluate:", "tune: {lr: [1e-3, 2e-3], seed: [7, 1]}\nevaluate:"),
        "29:36",
        "seed 1 is one of the study's own",
        "1000000",
    ),
    "one rate is no tuning": (("evaluate:", "tune: {lr: [1e-3]}\nevaluate:"), "29:12", "needs at least 2 items", None),
    "rates that fall": (
        ("evaluate:", "tune: {lr: {from: 2e-3, to: 1e-3, points: 3}}\nevaluate:"),
        "29:12",
        "from (0.002) must be below to (0.001)",
        None,
    ),
    "a grid of one point": (
        ("evaluate:", "tune: {lr: {from: 1e-3, to: 2e-3, points: 1}}\nevaluate:"),
        "29:43",
        "1 is out of bounds: it must be at least 2",
        None,
    ),
    "a rate twice": (
        ("evaluate:", "tune: {lr: [1e-3, 0.001]}\nevaluate:"),
        "29:19",
        "0.001 is given twice",
        "give each its own",
    ),
    "more trials than parity needs": (
        ("evaluate:", "tune: {lr: {from: 1e-4, to: 1e-2, points: 60}, seed: [7, 8]}\nevaluate:"),
        "29:7",
        "120 trials an arm, at most 100 are allowed",
        "fewer points or seeds",
    ),
    "trials too short to mean anything": (
        ("evaluate:", "tune: {lr: [1e-3, 2e-3], share: 0.05}\nevaluate:"),
        "29:33",
        "a trial of baseline `dense` would have 10 steps at scale `s`, at least 20 are needed",
        "raise `share` (now 0.05) or the scale's tokens",
    ),
    "a validation set that is not there": (
        ("evaluate:", "tune: {lr: [1e-3, 2e-3], validation: holdot}\nevaluate:"),
        "29:38",
        "no validation set is named 'holdot'",
        "did you mean `holdout`?",
    ),
    "a rate that tuning decides": (
        ("[{kind: exact_dedup}]\n", "[{kind: exact_dedup}]\n      optimizer: {lr: 1e-3}\ntune: {lr: [1e-3, 2e-3]}\n"),
        "23:19",
        "arm `all` sets optimizer.lr, which its tuning trials decide",
        "`{times: [...]}`",
    ),
    "heads do not divide width": (
        ("width: 64, heads: 2", "width: 64, heads: 3"),
        "25:46",
        "heads (3) must divide width (64) (baseline `dense` at scale `s`)",
        None,
    ),
    "an arm's shape at one scale": (
        ("      precision: {kind: fp32}\n", "      model: {kv_heads: 4}\n"),
        "17:25",
        "kv_heads (4) must divide heads (2) (arm `fp32` at scale `s`)",
        None,
    ),
    "top_k above experts": (
        ("experts: 8, top_k: 2", "experts: 2, top_k: 4"),
        "13:50",
        "top_k (4) must not exceed experts (2) (arm `moe` at scales `s`, `m`)",
        None,
    ),
    "sequence above context": (
        ("length: 64", "length: 512"),
        "9:38",
        "batching.length (512) must not exceed model.context (256) (baseline `dense` at scales `s`, `m`)",
        None,
    ),
    "what no single value of the arm causes": (
        (MOE, "change: {model: {context: 32}}"),
        "13:31",
        "batching.length (64) must not exceed model.context (32) (arm `moe` at scales `s`, `m`)",
        None,
    ),
    "an arm that changes nothing": (
        (MOE, "change: {precision: {kind: bf16}}"),
        "13:5",
        "arm `moe` changes nothing: its recipe is the baseline's",
        "init_stream",
    ),
    "an arm without a change": ((f"    {MOE}\n", ""), "11:5", "arm `moe` changes nothing", "init_stream"),
    "two equal arms": (
        (
            "      ffn: {kind: moe, experts: 4}\n      data: [{kind: exact_dedup}]\n",
            "      ffn: {experts: 8, kind: moe}\n",
        ),
        "20:5",
        "arm `all` is the same as arm `moe`",
        "remove one",
    ),
    "an arm that changes nothing at one scale": (
        (MOE, "change: {model: {layers: 4}}"),
        "13:5",
        "arm `moe` changes nothing at scale `m`: its recipe is the baseline's",
        "told apart there by `at`",
    ),
    "a name twice": (("name: fp32", "name: moe"), "14:11", "name 'moe' is given twice", "each its own"),
    "an arm named as the baseline": (("name: fp32", "name: dense"), "14:11", "name 'dense' is given twice", "its own"),
    "a scale twice": (("name: m,", "name: s,"), "26:14", "scale 's' is given twice", "its own"),
    "a seed twice": (("seed: [0, 1]", "seed: [0, 1, 1.0]"), "27:16", "seed 1 is given twice", "its own"),
    "a negative seed": (("seed: [0, 1]", "seed: [0, -1]"), "27:13", "-1 is out of bounds: it must be at least 0", None),
    "a horizon twice": (("[0.5, 1.0]", "[0.5, 1.0, 1]"), "28:23", "horizon 1.0 is given twice", "its own"),
    "no horizon 1.0": (("[0.5, 1.0]", "[0.5, 0.9]"), "28:12", "horizon 1.0 is missing", "add 1.0"),
    "no scale": ((SCALE_S + SCALE_M, "    []\n"), "25:5", "needs at least 1 item, got 0", None),
    "a number of one scale only": (
        ("tokens: 1M}", "tokens: 1M, lr: 1e-3}"),
        "25:14",
        "scale `s` leaves out `lr`, which scale `m` gives",
        "every scale",
    ),
    "a number in two places": (
        ("    batching:", "    model: {width: 8}\n    batching:"),
        "9:13",
        "`model.width` is set by over.scale",
        "remove it here",
    ),
    "vocabulary in two places": (
        (MOE, "change: {model: {vocab: 77}}"),
        "13:22",
        "`model.vocab` is set by data.tokenizer.vocab",
        "remove it here",
    ),
    "against nobody": (
        ("    role: claim\n", "    role: claim\n    against: mo\n"),
        "20:14",
        "no arm is named 'mo'",
        "did you mean `moe`?",
    ),
    "against itself": (
        ("    role: claim\n", "    role: claim\n    against: all\n"),
        "20:14",
        "is compared with itself",
        "leave `against` out",
    ),
    "against a timing arm": (
        ("    role: claim\n", "    role: claim\n    against: fp32\n"),
        "20:14",
        "`fp32` is a timing arm",
        "timing",
    ),
    "unknown task": (("[quartz]", "[quarts]"), "29:20", "unknown task 'quarts'", "quartz"),
    "a task twice": (("[quartz]", "[quartz, quartz]"), "29:28", "task 'quartz' is given twice", "its own"),
    "unknown metric": (("val_loss", "val_los"), "31:14", "unknown metric 'val_los'", "did you mean `val_loss`?"),
    "a rule for nobody": (("arm: moe}", "arm: meo}"), "31:29", "no arm is named 'meo'", "did you mean `moe`?"),
    "unknown scheme": (("pypi:evals==3.0.1.post1", "conda:evals"), "4:12", "is not a source", None),
    "a version left out": (
        ("pypi:evals==3.0.1.post1", "pypi:evals"),
        "4:12",
        "not a source of the form pypi:NAME==VERSION",
        None,
    ),
    "a missing file": (
        ("pypi:evals==3.0.1.post1", "file:no/such.txt"),
        "4:12",
        "no such file: 'no/such.txt'",
        "relative path",
    ),
    "a device as text": (
        ("pypi:evals==3.0.1.post1", "file:/dev/zero"),
        "4:12",
        "neither a file nor a folder, but a pipe or a device: '/dev/zero'",
        "write what it gives to a file",
    ),
    "a folder of decisions": (
        (MOE, "change: {batching: {kind: adaptive, sequences: 8, length: 64, replay: tests}}"),
        "13:75",
        "a folder, not a file: 'tests'",
        "the file of decisions",
    ),
    "a missing file of decisions": (
        (MOE, "change: {batching: {kind: adaptive, sequences: 8, length: 64, replay: no/such.jsonl}}"),
        "13:75",
        "no such file: 'no/such.jsonl'",
        "relative path",
    ),
    "memory below one sequence": (
        (MOE, "change: {batching: {kind: adaptive, sequences: 8, length: 64, memory: 1MB}}"),
        "13:75",
        "less than a training with one sequence of 64 tokens at once takes: about",
        "raise batching.memory, shorten batching.length",
    ),
    "a small vocabulary": (("vocab: 512", "vocab: 100"), "5:22", "100 is out of bounds: it must be at least 257", None),
    "few timing blocks": (
        ("gate:", "timing: {blocks: 4}\ngate:"),
        "30:18",
        "4 is out of bounds: it must be at least 8",
        None,
    ),
    "a budget in an unknown unit": (
        ("gate:", "budget: 3 cows\ngate:"),
        "30:9",
        "budget '3 cows' is not understood",
        "30min",
    ),
    "target below the claim": (
        ("gate:", "hypothesis: {saving: {at_least: 0.5}}\ngate:"),
        "30:22",
        "target (0.3) must not be below at_least (0.5)",
        None,
    ),
    "a control that is none": (
        ("gate:", "controls: {aa: moe}\ngate:"),
        "30:16",
        "no arm of role control is named 'moe'",
        "role: control",
    ),
    "a knob lost with its kind": (
        (
            "batching: {sequences: 8, length: 64}\narms:",
            "batching: {sequences: 8, length: 64}\n    model: {context: 64}\narms:\n"
            "  - {name: warm, change: {batching: {kind: length_warmup, start: 16}}}",
        ),
        "12:44",
        "batching.length (256) must not exceed model.context (64) (arm `warm` at scales `s`, `m`)",
        "another `kind` starts from its own defaults: repeat `length: 64`",
    ),
    "a control that is nobody": (
        ("gate:", "controls: {smaller: nobody}\ngate:"),
        "30:21",
        "no arm of role control is named 'nobody'",
        "role: control",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_shown_at_its_place(name: str, tmp_path: Path) -> None:
    edit, where, message, hint = BAD[name]
    path = written(tmp_path, edited(edit))
    problems = check(path)
    shown = "\n".join(format_problem(problem) for problem in problems)
    assert [problem.where for problem in problems] == [f"{path}:{where}"], shown
    assert message in problems[0].message
    assert (problems[0].hint is None) == (hint is None), shown
    assert hint is None or hint in (problems[0].hint or "")
    assert problems[0].text == path.read_text().splitlines()[problems[0].line - 1]


def test_a_circle_of_references_is_shown_at_each_arm(tmp_path: Path) -> None:
    text = edited(("role: component\n", "against: all\n"), ("role: claim\n", "against: moe\n"))
    assert [(p.line, p.column, p.message) for p in check(written(tmp_path, text))] == [
        (12, 14, "`against` goes in a circle: moe -> all -> moe"),
        (19, 14, "`against` goes in a circle: all -> moe -> all"),
    ]


def test_an_aa_control_changes_the_initialisation_only(tmp_path: Path) -> None:
    controls = ("gate:", "controls: {aa: moe}\ngate:")
    role = ("role: component", "role: control")
    (problem,) = check(written(tmp_path, edited(controls, role)))
    assert (problem.line, problem.column) == (30, 16)
    assert "no A/A control" in problem.message
    placebo = loaded(tmp_path, controls, role, (MOE, "change: {model: {init_stream: 1}}"))
    assert placebo.design().controls["aa"] == "moe"


def test_a_mistake_in_the_baseline_is_not_repeated_for_each_arm(tmp_path: Path) -> None:
    path = written(tmp_path, edited(("{sequences: 8, length: 64}", "{sequences: 8, length: 64, micro_sequences: 3}")))
    (problem,) = check(path)
    assert (problem.line, problem.column) == (9, 59)
    assert problem.message.endswith("(baseline `dense` at scales `s`, `m`)")


def test_all_mistakes_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    names = [
        "unknown key",
        "unknown kind",
        "kind without its mapping",
        "bad role",
        "heads do not divide width",
        "a seed twice",
        "no horizon 1.0",
        "unknown task",
        "unknown metric",
        "a small vocabulary",
    ]
    text = edited(*(BAD[name][0] for name in names))
    found = [f"{p.line}:{p.column}" for p in check(written(tmp_path, text))]
    assert found == sorted((BAD[name][1] for name in names), key=lambda where: [int(n) for n in where.split(":")])


def test_arms_are_checked_even_when_no_scale_is_right(tmp_path: Path) -> None:
    text = edited((SCALE_S + SCALE_M, "    - {name: s}\n"), ("top_k: 2", "topk: 2"))
    messages = [problem.message for problem in check(written(tmp_path, text))]
    assert messages[0] == "unknown key `topk`"
    assert messages[1:] == [f"missing key `{key}`" for key in ("layers", "width", "heads", "tokens")]


def test_load_suite_raises_everything(tmp_path: Path) -> None:
    path = written(tmp_path, edited(BAD["unknown key"][0], BAD["unknown task"][0]))
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    assert len(caught.value.problems) == 2
    assert f"{path}:2:1: error: unknown key `abuot`" in str(caught.value)


def test_an_alias_points_to_where_it_is_used(tmp_path: Path) -> None:
    text = edited((MOE, "change: &moe {ffn: {kind: moe, bad: 1}}"), ("      precision: {kind: fp32}\n", "      *moe\n"))
    assert check(written(tmp_path, text))[0].message == "unknown key `bad`"


@pytest.mark.parametrize("wrong", ["tokens: -4", "tokens: 1M, context: 0", "tokns: 1M, tokens: 1M", "lr: 1e-3"])
@pytest.mark.parametrize("others", [SCALE_M, ""])
def test_values_that_do_not_go_together_are_shown_beside_a_wrong_one(wrong: str, others: str, tmp_path: Path) -> None:
    scale = f"    - {{name: s, layers: 2, width: 128, heads: 3, {wrong}}}\n"
    messages = [problem.message for problem in check(written(tmp_path, edited((SCALE_S + SCALE_M, scale + others))))]
    assert "heads (3) must divide width (128) (baseline `dense` at scale `s`)" in messages
    assert len(messages) == 2, messages


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_nothing_is_shown_that_follows_from_a_wrong_value(path: Path) -> None:
    data = ownmodel.spelled_out(source.read(path).data())
    for index, scale in enumerate(data.get("over", {}).get("scale", [])):
        for wrong in combinations([name for name in scale if name != "name"], 2):
            scales = [*data["over"]["scale"]]
            scales[index] = {**scale, wrong[0]: -1, wrong[1]: "x"}
            found = list(recipe_findings(Draft.of({**data, "over": {**data["over"], "scale": scales}})))
            assert not found, (wrong, found)


BESIDE: dict[str, tuple[str, list[str]]] = {
    "two rules of one mapping": (
        "change: {ffn: {kind: moe, experts: 2, top_k: 4, hidden: 8, split: 2}}",
        ["top_k (4) must not exceed experts (2)", "split (2) and hidden (8) both set the width of an expert: give one"],
    ),
    "a wrong value in the mapping": (
        "change: {ffn: {kind: moe, experts: 2, top_k: 4, shared: -1}}",
        ["top_k (4) must not exceed experts (2)", "-1 is out of bounds: it must be at least 0"],
    ),
    "an unknown key in the mapping": (
        "change: {ffn: {kind: moe, experts: 2, top_k: 4, shard: 1}}",
        ["top_k (4) must not exceed experts (2)", "unknown key `shard`"],
    ),
    "the unknown key may be what is missing": (
        "change: {ffn: {kind: moe, experts: 1, topk: 1}}",
        ["unknown key `topk`"],
    ),
    "the wrong value is one of the two": (
        "change: {ffn: {kind: moe, experts: -1, top_k: 4}}",
        ["-1 is out of bounds: it must be greater than 0"],
    ),
    "a wrong value in another mapping": (
        "change: {optimizer: {lr: -1}, batching: {length: 512}}",
        ["-1 is out of bounds: it must be greater than 0.0",
         "batching.length (512) must not exceed model.context (256)"],
    ),
    "a rule of the whole behind one of a part": (
        "change: {batching: {sequences: 8, micro_sequences: 3, length: 512}}",
        ["micro_sequences (3) must divide sequences (8)", "batching.length (512) must not exceed model.context (256)"],
    ),
    "a step of the data": (
        "change: {data: [{kind: back_translation, below: 0.3, target: 0.1, pool: -1}]}",
        ["target (0.1) must not be less than below (0.3)", "unknown key `pool`"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_rules_are_asked_beside_wrong_values(name: str, tmp_path: Path) -> None:
    change, expected = BESIDE[name]
    messages = [problem.message.partition(" (arm `")[0] for problem in check(written(tmp_path, edited((MOE, change))))]
    assert sorted(messages) == sorted(expected)


def test_numbers_of_inference_are_all_compared(tmp_path: Path) -> None:
    inference = (
        "inference: {blocks: 90, prompts: 80, quality_texts: 60, arms: [{name: x, decoding: {kind: one_by_one}}]}\n"
    )
    messages = [problem.message for problem in check(written(tmp_path, edited() + inference))]
    assert "blocks (90) must not exceed prompts (80)" in messages
    assert "quality_texts (60) must not be fewer than prompts (80)" in messages


def _leaves(value: object, path: source.DataPath = ()) -> Iterator[source.DataPath]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif not isinstance(value, list) and path[-1] != "kind":
        yield path


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
@pytest.mark.parametrize("bad", [-1, "x"])
def test_no_rule_is_said_to_be_broken_by_a_wrong_value(path: Path, bad: object) -> None:
    data = ownmodel.spelled_out(source.read(path).data())
    recipe = data.get("baseline", {}).get("recipe", {})
    for place in _leaves(recipe):
        wrong = merge(recipe, nested({place: bad}))
        found = recipe_findings(Draft.of({**data, "baseline": {**data["baseline"], "recipe": wrong}}))
        assert all("(baseline `" not in each.message and "(arm `" not in each.message for each in found), place
    for index, arm in enumerate(data.get("arms", [])):
        for place in _leaves(arm.get("change", {})):
            arms = [*data["arms"]]
            arms[index] = {**arm, "change": merge(arm["change"], nested({place: bad}))}
            found = list(recipe_findings(Draft.of({**data, "arms": arms})))
            assert all("(arm `" not in each.message for each in found), (place, found)


def test_what_is_allowed_is_listed_once() -> None:
    assert suggest("nothing like them", ["dense", "both", "both"]) == "allowed: dense, both"
