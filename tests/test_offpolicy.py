"""Off-policy estimates: the truth lies in the interval, and missing overlap shows."""

import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from policy.baselines.greedy import Greedy
from policy.baselines.uniform import Uniform
from policy.money import Price
from policy.offpolicy import Log, evaluate, target_probabilities
from policy.terms import Arm, Settings
from streams.commands.evaluate import register
from streams.decision_log import LogError, read_jsonl
from streams.records import (
    Candidate,
    Candidates,
    Decision,
    Outcome,
    PriceEntry,
    PriceTag,
    Request,
    Seen,
    Usage,
    decision_id,
    encode,
)

ARMS = tuple(
    Arm(arm=name, price=Price(version=1, input=price, output=price))
    for name, price in (("small", 100_000), ("middle", 1_000_000), ("large", 5_000_000))
)
COST = np.array([1e-5, 1e-4, 5e-4])


def chances(features):
    """Return each arm's chance of a reward of one, shape (n, 3)."""
    hard = features[:, :1]
    return np.clip(np.array([0.6, 0.75, 0.85]) - np.array([0.3, 0.1, 0.0]) * hard, 0.0, 1.0)


def logged(seed, *, count=400, share_known=1.0):
    """Logging: 55 % small, 30 % middle, 15 % large, whatever the request."""
    rng = np.random.default_rng(seed)
    features = np.hstack([rng.normal(size=(count, 1)), np.ones((count, 1))])
    logging = np.array([0.55, 0.30, 0.15])
    arm = rng.choice(3, count, p=logging)
    row = np.arange(count)
    reward = (rng.random(count) < chances(features)[row, arm]).astype(float)
    reward[rng.random(count) >= share_known] = np.nan
    tokens = rng.lognormal(4.0, 0.5, count)
    nothing = np.full((count, 3), np.nan)
    log = Log(
        arms=ARMS,
        features=features,
        input_tokens=np.full(count, 50),
        max_output_tokens=np.full(count, 5_000),
        seeds=rng.integers(0, 2**63, count, dtype=np.uint64),
        arm=arm,
        propensity=logging[arm],
        reward=reward,
        cost_usd=COST[arm] * tokens / np.exp(4.125),
        output_tokens=np.round(tokens),
        eligible=np.ones((count, 3), bool),
        expected_reward=nothing,
        expected_cost_usd=nothing,
        dual_price=np.zeros(count),
    )
    return log


def wanted(features):
    """The other policy: large for hard requests, else mostly small."""
    hard = features[:, :1] > 0.5
    return np.where(hard, [0.05, 0.15, 0.8], [0.7, 0.25, 0.05])


def truth():
    features = np.random.default_rng(99).normal(size=(200_000, 1))
    target = wanted(features)
    return (target * chances(features)).sum(axis=1).mean(), (target * COST).sum(axis=1).mean()


def test_intervals_cover_the_truth_in_200_replays():
    true = truth()
    covered = np.zeros((2, 3))
    for seed in range(200):
        log = logged(seed)
        for quantity, found in enumerate(evaluate(log, wanted(log.features))):
            for column, name in enumerate(("ips", "snips", "doubly_robust")):
                estimate = getattr(found, name)
                covered[quantity, column] += estimate.low <= true[quantity] <= estimate.high
    assert (covered / 200 >= 0.93).all(), covered / 200
    assert (covered / 200 <= 0.995).all(), covered / 200


def test_coverage_holds_where_rewards_are_missing():
    true, _ = truth()
    covered = 0
    for seed in range(100):
        log = logged(seed, share_known=0.4)
        found, _ = evaluate(log, wanted(log.features))
        assert found.used < 200
        covered += found.doubly_robust.low <= true <= found.doubly_robust.high
    assert covered >= 93


def test_good_estimates_narrow_the_interval():
    log = logged(0, count=1_000)
    guided = replace(log, expected_cost_usd=np.broadcast_to(COST, (1_000, 3)).copy())
    target = wanted(log.features)
    plain, modelled = evaluate(log, target)[1], evaluate(guided, target)[1]
    assert (modelled.doubly_robust.high - modelled.doubly_robust.low) < 0.7 * (
        plain.ips.high - plain.ips.low
    )


def test_the_logging_policy_is_its_own_mean():
    log = logged(3)
    target = np.broadcast_to([0.55, 0.30, 0.15], (len(log), 3)).copy()
    reward, cost = evaluate(log, target)
    assert reward.ips.mean == pytest.approx(log.reward.mean())
    assert cost.snips.mean == pytest.approx(log.cost_usd.mean())
    assert reward.effective == pytest.approx(len(log))
    assert reward.weight_mean == pytest.approx(1.0)


def test_missing_overlap_shows_in_the_mean_weight():
    log = logged(4)
    only_small = replace(log, arm=np.zeros(len(log), np.int64), propensity=np.ones(len(log)))
    found, _ = evaluate(only_small, np.broadcast_to([0.1, 0.0, 0.9], (len(log), 3)).copy())
    assert found.weight_mean == pytest.approx(0.1)


def test_policies_are_asked_before_they_are_taught():
    log = logged(5)
    target = target_probabilities(log, Greedy(Settings(dimensions=1, options={"epsilon": 0.1})))
    assert target.sum(axis=1) == pytest.approx(1.0)
    # Nothing known: the first of equals. Later it has found out which is best.
    assert target[0] == pytest.approx([0.1 / 3 + 0.9, 0.1 / 3, 0.1 / 3])
    assert target[-1].argmax() == 2
    still = target_probabilities(
        log, Greedy(Settings(dimensions=1, options={"epsilon": 0.1})), learn=False
    )
    assert (still == target[0]).all()


def test_a_random_policy_is_estimated_right():
    log = logged(6, count=3_000)
    found, cost = evaluate(log, target_probabilities(log, Uniform(Settings(dimensions=1))))
    assert found.snips.low <= chances(log.features).mean() <= found.snips.high
    assert cost.snips.low <= COST.mean() <= cost.snips.high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"propensity": np.zeros(400)}, "propensity", id="no-propensity"),
        pytest.param({"arm": np.full(400, 3)}, "arm must be", id="arm-out-of-range"),
        pytest.param({"eligible": np.zeros((400, 3), bool)}, "eligible", id="not-eligible"),
        pytest.param({"reward": np.zeros(3)}, "reward must have shape", id="shape"),
    ],
)
def test_bad_logs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(logged(0), **change)


def test_too_few_outcomes_are_refused():
    log = replace(logged(0), reward=np.full(400, np.nan))
    with pytest.raises(ValueError, match="too few"):
        evaluate(log, wanted(log.features))


def as_records(log):
    """The same log as records of the topics."""
    names = [arm.arm for arm in log.arms]
    for arm in log.arms:
        yield PriceEntry(arm=arm.arm, version=1, input=arm.price.input, output=arm.price.output)
    for row in range(len(log)):
        name = f"r{row}"
        yield Request(
            request_id=name,
            budget="acme/web",
            input_tokens=int(log.input_tokens[row]),
            max_output_tokens=int(log.max_output_tokens[row]),
            features=log.features[row, :-1].tolist(),
        )
        yield Decision(
            decision_id=decision_id("acme", name),
            request_id=name,
            budget="acme/web",
            decided_ms=row,
            offsets=Seen(request=row, batch=row, outcomes=0, catalog=0, statistics=0),
            arm=names[log.arm[row]],
            input_tokens=int(log.input_tokens[row]),
            max_output_tokens=int(log.max_output_tokens[row]),
            propensity=float(log.propensity[row]),
            candidates=Candidates.of(Candidate(n, 0.5, 100_000, 10**6, 0.5, "") for n in names),
        )
        cost = round(float(log.cost_usd[row]) * 1e9)
        yield Outcome(request_id=name, cost_nanousd=cost)
        yield Outcome(request_id=name, cost_nanousd=cost + 1, reward=float(log.reward[row]))


def test_records_of_the_topics_make_the_same_log():
    log = logged(7, count=60)
    rejected = Decision(
        decision_id="x",
        request_id="x",
        budget="acme",
        decided_ms=0,
        offsets=Seen(request=0, batch=0, outcomes=0, catalog=0, statistics=0),
        rejected="budget_exhausted",
    )
    lines = [encode(record) for record in [*as_records(log), rejected]]
    read, left_out = read_jsonl(lines)
    order = [[arm.arm for arm in read.arms].index(arm.arm) for arm in log.arms]
    assert left_out == 1
    assert (np.array(order)[log.arm] == read.arm).all()
    assert read.reward.tolist() == log.reward.tolist()
    assert read.cost_usd == pytest.approx(log.cost_usd, abs=1e-9)
    assert read.features == pytest.approx(log.features)
    assert {arm.arm: arm.price for arm in read.arms} == {arm.arm: arm.price for arm in log.arms}
    assert read.expected_cost_usd[0] == pytest.approx([1e-4] * 3)
    # As `tollway tail --json` prints them: each with its place.
    tailed = [b'{"topic":"t","partition":0,"offset":1,"record":' + line + b"}" for line in lines]
    tailed.append(b'{"topic":"t","partition":0,"offset":2,"key":"price:gone@x","record":null}')
    again, left_out = read_jsonl(tailed)
    assert left_out == 1
    assert again.cost_usd.tolist() == read.cost_usd.tolist()
    assert again.features.tolist() == read.features.tolist()


def test_usage_is_priced_as_the_decision_pinned_it():
    log = logged(8, count=2)
    records = [record for record in as_records(log) if isinstance(record, Decision)]
    for record in records:
        record.price = PriceTag(3, 1_000_000, 2_000_000)
    usage = Usage(prompt_tokens=100, completion_tokens=10)
    lines = [encode(r) for r in [*records, Outcome(request_id="r0", usage=usage)]]
    read, _ = read_jsonl(lines)
    assert read.cost_usd[0] == pytest.approx(120e-6)
    assert np.isnan(read.cost_usd[1])
    assert read.features.tolist() == [[1.0], [1.0]]


def test_prompts_become_features_by_the_newest_encoder_of_the_log():
    log = logged(8, count=2)
    records = list(as_records(log))
    versions = iter(["lexical-aaaaaaaaaaaa", "lexical-bbbbbbbbbbbb"])
    for record in records:
        if isinstance(record, Request):
            record.prompt, record.features, record.features_b64 = "x" * 7, None, None
        elif isinstance(record, Decision):
            record.features = next(versions)
    asked = []

    def made(version, prompts):
        asked.append(version)
        return np.array([[len(prompt), 0.5] for prompt in prompts])

    read, _ = read_jsonl([encode(record) for record in records], encode=made)
    assert asked == ["lexical-bbbbbbbbbbbb"]
    assert read.features.tolist() == [[7.0, 0.5, 1.0]] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(b"{", "line 1", id="broken"),
        pytest.param(b"[1]", "JSON object", id="no-object"),
        pytest.param(b'{"topic": "t", "record": 1}', "no JSON object", id="no-object-in-it"),
        pytest.param(b'{"request_id": "a", "rewrad": 1}', "unknown_field", id="misspelt"),
        pytest.param(b'{"request_id": "a", "reward": 1.0}', "no decision", id="no-decision"),
    ],
)
def test_unreadable_lines_are_named(line, message):
    with pytest.raises(LogError, match=message):
        read_jsonl([line])


def evaluate_command(*arguments):
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_the_command_estimates_a_fixed_arm(tmp_path):
    log = logged(9, count=2_000)
    path = tmp_path / "log.npz"
    np.savez(
        path,
        model=np.array([arm.arm for arm in log.arms]),
        arm=log.arm,
        propensity=log.propensity,
        reward=log.reward,
        cost_usd=log.cost_usd,
        features=log.features[:, :-1],
        price_in_microusd_per_mtok=np.array([arm.price.input for arm in log.arms]),
        price_out_microusd_per_mtok=np.array([arm.price.output for arm in log.arms]),
    )
    found = evaluate_command(path, "--policy", "fixed", "--set", "arm=large", "--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.output)
    reward, cost = report["reward"]["doubly_robust"], report["cost_usd"]["snips"]
    assert reward["low"] <= 0.85 <= reward["high"]
    assert cost["low"] <= 5e-4 <= cost["high"]
    assert report["warnings"] == []
    table = evaluate_command(path, "--policy", "random")
    assert "doubly robust" in table.output


def test_the_command_reads_records_and_warns_without_overlap(tmp_path):
    log = logged(10, count=80)
    path = tmp_path / "log.jsonl"
    sure = replace(log, arm=np.zeros(80, np.int64), propensity=np.ones(80))
    path.write_bytes(b"\n".join(encode(record) for record in as_records(sure)))
    found = evaluate_command(path, "--policy", "fixed", "--set", "arm=large", "--json")
    assert found.exit_code == 0, found.output
    assert "mean weight is 0.00" in json.loads(found.output)["warnings"][0]


@pytest.mark.parametrize(
    "arguments",
    [["missing.npz"], ["{log}", "--policy", "unheard"], ["{log}", "--set", "nothing"]],
)
def test_the_command_says_what_is_wrong(tmp_path, arguments):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(encode(record) for record in as_records(logged(1, count=5))))
    found = evaluate_command(*[a.format(log=path) for a in arguments])
    assert found.exit_code == 2
    assert "tollway:" in found.output
