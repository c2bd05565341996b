"""What crosses, byte by byte; and that nothing else gets through, in either direction."""

import gzip
import pathlib
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from shoal.runtimes.federated import guard, message

SPEC = message.Spec((("policy/head/bias", (3,)), ("policy/trunk/kernel", (2, 4))))
RUN = bytes(range(16))
HEADER = message.Header(RUN, 2, 7, 5, message.GRADIENT)
VECTOR = np.arange(11, dtype=np.float32)
UP = message.Up(HEADER, VECTOR, 40, 1, message.OK)
DOWN = message.Down(HEADER, VECTOR, message.Settings(4, 1.5, 0.25, 1.0, 0.0))
EXPECTED = guard.Expected(RUN, 2, 7, 5, message.GRADIENT, env_steps=40, updates=1)
BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def wire(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _wire_faults

    return _wire_faults


def test_a_message_is_header_tensors_and_counts_and_not_a_byte_more():
    body = message.encode_up(SPEC, UP)
    assert len(body) == SPEC.bytes_up == 76 + 4 * 11 + 17
    assert body[:8] == b"SHLF\x01\x00\x01\x01"
    assert body[8:24] == RUN
    assert struct.unpack("<IQQ", body[24:44]) == (2, 7, 5)
    assert body[44:76] == SPEC.digest
    assert body[76:-17] == VECTOR.astype("<f4").tobytes()
    assert struct.unpack("<qqB", body[-17:]) == (40, 1, 0)
    down = message.encode_down(SPEC, DOWN)
    assert len(down) == SPEC.bytes_down == 76 + 4 * 11 + 40
    assert struct.unpack("<qdddd", down[-40:]) == (4, 1.5, 0.25, 1.0, 0.0)


@pytest.mark.parametrize("dtype", message.DTYPES)
def test_what_was_encoded_is_decoded(dtype):
    spec, vector = SPEC._replace(dtype=dtype), VECTOR.astype(dtype)
    up = message.decode_up(spec, message.encode_up(spec, UP._replace(vector=vector)))
    assert up.header == HEADER
    assert (up.vector == vector).all()
    assert up[2:] == UP[2:]
    down = message.decode_down(spec, message.encode_down(spec, DOWN._replace(vector=vector)))
    assert down.header == HEADER
    assert (down.vector == vector).all()
    assert down.settings == DOWN.settings


def test_a_hash_tells_names_shapes_order_and_dtype_apart():
    (first, second), digest = SPEC.tensors, SPEC.digest
    others = [
        SPEC._replace(tensors=(second, first)),
        SPEC._replace(tensors=((first[0] + "x", first[1]), second)),
        SPEC._replace(tensors=(first, (second[0], (4, 2)))),
        SPEC._replace(tensors=(first, (second[0], (8,)))),
        SPEC._replace(dtype="<u4"),
    ]
    assert digest == message.Spec(SPEC.tensors).digest
    assert len({digest, *(other.digest for other in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vector": VECTOR[:-1]}, "shape"),
        ({"vector": VECTOR.reshape(11, 1)}, "shape"),
        ({"vector": VECTOR.astype(np.float64)}, "dtype"),
        ({"vector": VECTOR.astype(">f4")}, "dtype"),
        ({"vector": VECTOR.tolist()}, "dtype"),
        ({"vector": np.where(VECTOR == 3, np.nan, VECTOR)}, "not_finite"),
        ({"vector": np.where(VECTOR == 3, -np.inf, VECTOR)}, "not_finite"),
        ({"env_steps": -1}, "counts"),
        ({"updates": message.MOST + 1}, "counts"),
        ({"outcome": 3}, "outcome"),
        ({"header": HEADER._replace(run=b"short")}, "header"),
        ({"header": HEADER._replace(kind=9)}, "header"),
        ({"header": HEADER._replace(party=-1)}, "header"),
    ],
)
def test_what_may_not_cross_raises_before_a_byte_is_written(change, reason):
    with pytest.raises(message.Malformed) as raised:
        message.encode_up(SPEC, UP._replace(**change))
    assert raised.value.reason == reason


def test_tensors_are_joined_only_where_keys_shapes_and_dtypes_are_the_global_parts():
    given = [("policy/head/bias", VECTOR[:3]), ("policy/trunk/kernel", VECTOR[3:].reshape(2, 4))]
    assert (message.joined(SPEC, given) == VECTOR).all()
    for wrong in ([given[0]], [*given, ("own_head/bias", VECTOR[:1])], [("x", given[0][1]), given[1]], given[::-1]):
        with pytest.raises(message.Malformed):
            message.joined(SPEC, wrong)
    with pytest.raises(message.Malformed):
        message.joined(SPEC, [given[0], ("policy/trunk/kernel", given[1][1].astype(np.float64))])


def test_a_norm_is_summed_in_float64():
    assert message.norm(np.full(4, 3e38, np.float32)) == pytest.approx(6e38, rel=1e-6)
    assert message.norm(np.full(4, 1e-30, np.float32)) == pytest.approx(2e-30, rel=1e-6)


# ------------------------------------------------------------------------------------------------ the guard


def test_a_good_message_passes():
    up, reason = guard.check(SPEC, message.encode_up(SPEC, UP), EXPECTED)
    assert reason == ""
    assert up is not None
    assert (up.vector == VECTOR).all()


def test_every_fault_of_the_wire_is_turned_away_for_its_reason(wire, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a pickle that is loaded would write
    faults = wire.faults(SPEC, message.encode_up(SPEC, UP))
    found = {name: guard.check(SPEC, body, EXPECTED) for name, (body, _) in faults.items()}
    assert {name: reason for name, (_, reason) in found.items()} == {
        name: reason for name, (_, reason) in faults.items()
    }
    assert all(up is None for up, _ in found.values())
    assert {reason for _, reason in found.values()} <= {*guard.REASONS}
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "body", [None, "text", 3, [b"x"], bytearray(10), memoryview(b"x" * 137), np.zeros(137, np.uint8)]
)
def test_what_is_no_bytes_is_turned_away(body):
    assert guard.check(SPEC, body, EXPECTED) == (None, "type")


def test_denormals_are_kept():
    tiny = np.full(11, np.float32(1e-45))
    up, reason = guard.check(SPEC, message.encode_up(SPEC, UP._replace(vector=tiny)), EXPECTED)
    assert reason == ""
    assert up is not None
    assert (up.vector == tiny).all()


def test_the_largest_float32_is_finite_and_has_a_norm():
    huge = np.full(11, np.finfo(np.float32).max)
    body = message.encode_up(SPEC, UP._replace(vector=huge))
    assert guard.check(SPEC, body, EXPECTED)[1] == ""
    assert guard.check(SPEC, body, EXPECTED._replace(max_norm=1e38)) == (None, "norm")


def test_a_norm_up_to_the_bound_passes():
    body = message.encode_up(SPEC, UP)
    norm = message.norm(VECTOR)
    assert guard.check(SPEC, body, EXPECTED._replace(max_norm=norm))[1] == ""
    assert guard.check(SPEC, body, EXPECTED._replace(max_norm=norm * 0.999))[1] == "norm"


def test_counts_beyond_what_a_round_can_have_are_turned_away():
    body = message.encode_up(SPEC, UP._replace(env_steps=41))
    assert guard.check(SPEC, body, EXPECTED)[1] == "counts"
    assert guard.check(SPEC, message.encode_up(SPEC, UP._replace(updates=2)), EXPECTED)[1] == "counts"


def test_outputs_that_are_no_distributions_are_turned_away():
    spec, expected = message.Spec((("outputs", (2, 2)),)), EXPECTED._replace(choices=2)
    for rows, reason in (([0.5, 0.5, 1, 0], ""), ([0.6, 0.5, 1, 0], "outputs"), ([1.5, -0.5, 1, 0], "outputs")):
        body = message.encode_up(spec, UP._replace(vector=np.array(rows, np.float32)))
        assert guard.check(spec, body, expected)[1] == reason


def test_an_outcome_that_is_none_is_turned_away_even_without_tensors():
    body = message.encode_up(SPEC, UP._replace(vector=np.zeros(11, np.float32)))
    assert guard.check(SPEC, body[:-1] + b"\x03", EXPECTED) == (None, "outcome")


def test_a_failed_job_may_name_no_round():
    up = message.Up(HEADER._replace(round=0, base=0), np.zeros(11, np.float32), outcome=message.FAILED)
    assert guard.check(SPEC, message.encode_up(SPEC, up), EXPECTED)[1] == ""
    other = up._replace(header=up.header._replace(party=3))
    assert guard.check(SPEC, message.encode_up(SPEC, other), EXPECTED)[1] == "party"


def test_a_thousand_mutated_messages_are_turned_away_each_for_a_reason(wire):
    random, body = np.random.default_rng(18), message.encode_up(SPEC, UP)
    counted: dict[str, int] = {}
    for _ in range(1000):
        up, reason = guard.check(SPEC, wire.mutated(SPEC, body, random), EXPECTED)
        assert up is None
        assert reason in guard.REASONS
        counted[reason] = counted.get(reason, 0) + 1
    assert sum(counted.values()) == 1000
    assert {"size", "header", "spec", "run", "party", "not_finite", "counts"} <= counted.keys()


def test_no_memory_is_taken_for_a_message_of_another_length():
    bomb, large = gzip.compress(bytes(1 << 24)), bytes(1 << 25)
    tracemalloc.start()
    try:
        for body in (bomb, large):
            assert guard.check(SPEC, body, EXPECTED) == (None, "size")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000


def test_a_hostile_server_gets_nothing_past_the_decoder():
    good = message.encode_down(SPEC, DOWN)
    for at, content, reason in (
        (76, struct.pack("<f", np.nan), "not_finite"),
        (76 + 4 * 10, struct.pack("<f", np.inf), "not_finite"),
        (6, b"\x01", "header"),
        (44, bytes(32), "spec"),
        (len(good) - 32, struct.pack("<d", np.nan), "settings"),  # the clip
        (len(good) - 24, struct.pack("<d", -1.0), "settings"),  # the noise
        (len(good) - 16, struct.pack("<d", np.inf), "settings"),  # the server's step
        (len(good) - 40, struct.pack("<q", -5), "settings"),  # the local updates
    ):
        with pytest.raises(message.Malformed) as raised:
            message.decode_down(SPEC, good[:at] + content + good[at + len(content) :])
        assert raised.value.reason == reason
    for body in (good[:-1], good + b"\0", message.encode_up(SPEC, UP), b"", None):
        with pytest.raises(message.Malformed):
            message.decode_down(SPEC, body)


def test_none_of_it_imports_jax():
    modules = "message network guard robust applying rounds jobs tally server audit hostile"
    code = (
        "import sys, importlib\n"
        f"for name in '{modules}'.split(): importlib.import_module('shoal.runtimes.federated.' + name)\n"
        "sys.exit(any(name.partition('.')[0] in ('jax', 'jaxlib', 'flax') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
