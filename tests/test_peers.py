"""Several processes, one of which is killed: the other ends soon, in one line; a run goes on."""

import contextlib
import io
import socket
import time

import jax
import numpy as np
import pytest
import runs

from harp_jax import checkpoint, peers

OPTIONS = (
    "--config.pretrain.epochs=6",
    "--config.stages=('pretrain','evaluate')",
    "--config.evaluate.run=('fgsm',)",
)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_two(workdir, *options):
    address = f"--coordinator=127.0.0.1:{free_port()}"
    return [
        runs.start(runs.command(workdir, *options, address, "--processes=2", f"--process={number}"))
        for number in range(2)
    ]


def wait_for(process, text):
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"the command ended without {text!r}")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_in_one_line(killed, tmp_path):
    options = [*OPTIONS, runs.cache_option(tmp_path)]
    processes = start_two(tmp_path / "run", *options, "--config.pretrain.epochs=400")
    wait_for(processes[0], "pretrain epoch 3")
    processes[killed].kill()
    began, other = time.monotonic(), processes[1 - killed]
    said = runs.end(other, 120).stderr
    print(f"process {killed} killed: {time.monotonic() - began:.1f} s")
    processes[killed].communicate()
    assert other.returncode == peers.LOST
    (line,) = [line for line in said.splitlines() if "epoch" not in line and "device" not in line]
    assert line.startswith(f"lost: process {killed} is gone; saved are pretrain up to step ")
    assert line.endswith("; start the same command again, in as many processes or in one")


@pytest.mark.slow
def test_a_run_goes_on_in_two_processes_and_in_one(tmp_path):
    options = [*OPTIONS, runs.cache_option(tmp_path)]
    alone = runs.call(runs.command(tmp_path / "alone", *options))
    assert alone.returncode == 0, alone.stderr
    for again in (2, 1):
        workdir = tmp_path / f"in{again}"
        processes = start_two(workdir, *options)
        wait_for(processes[0], "pretrain epoch 1")
        processes[1].kill()
        ended = [runs.end(process, 120) for process in processes]
        assert ended[0].returncode == peers.LOST, ended[0].stderr
        if again == 2:
            ended = [runs.end(process) for process in start_two(workdir, *options)]
        else:
            ended = [runs.call(runs.command(workdir, *options))]
        assert [each.returncode for each in ended] == [0] * again, ended
        apart = runs.differences(tmp_path / "alone", workdir, ("pretrain",))
        rows = [runs.results(each)["rows"][0] for each in (tmp_path / "alone", workdir)]
        natural, robust = (
            abs(rows[0][name] - rows[1][name])
            if name == "natural"
            else abs(rows[0]["robust"]["fgsm"] - rows[1]["robust"]["fgsm"])
            for name in ("natural", "robust")
        )
        print(
            f"in {again}: parameters {max(apart.values()):.1e}, natural {natural:.4f}, robust"
            f" {robust:.4f} apart"
        )
        assert natural < 0.05
        assert robust < 0.1


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        ((False, None, None, None), None),
        ((True, None, None, None), None),
        ((False, "host:1", 2, 0), None),
        ((True, "host:1", 2, 1), None),
        ((False, None, 2, None), "--processes=2: allowed with --coordinator=HOST:PORT"),
        ((False, None, None, 0), "--process=0: allowed with --coordinator=HOST:PORT"),
        ((False, "host:1", None, None), "--coordinator=host:1: allowed with --processes=N"),
        ((False, "host:1", 2, None), "--coordinator=host:1: allowed with --process=N"),
        ((False, "host:1", 0, 0), "--processes=0: allowed are whole numbers >= 1"),
        ((False, "host:1", 2, 2), "--process=2: allowed are whole numbers from 0"),
        ((True, None, None, -1), "--process=-1: allowed are whole numbers from 0"),
    ],
)
def test_flags_of_processes_that_cannot_work_are_named(flags, wrong):
    found = peers.wrong_flags(*flags)
    assert found is None if wrong is None else found.startswith(wrong)


@pytest.mark.parametrize(
    ("native", "gone"),
    [
        ("tasks are unhealthy (stopped sending heartbeats):\n1\nThe tasks", "process 1"),
        ("tasks are unhealthy (stopped sending heartbeats):\n1\n3\nThe", "processes 1, 3"),
        ('{grpc_message:"Socket closed", grpc_status:14}', "process 0"),
        ("something else", "another process"),
    ],
)
def test_who_is_gone_is_read_from_what_jax_says(native, gone):
    assert peers._gone(native) == gone


def test_only_what_jax_says_of_peers_is_held_back(capsys):
    lines = io.StringIO(
        "W0101 00:00:00.000000 1 cuda.cc:1] of a driver\n"
        "plain\n"
        "E0101 00:00:00.000000 1 coordination_service.cc:1] tasks are unhealthy (stopped):\n"
        "1\n"
        "F0101 00:00:00.000000 1 client.h:80] JAX distributed service detected fatal errors.\n"
        "*** Check failure stack trace: ***\n"
    )
    held = peers._forward(lines)
    assert capsys.readouterr().err.splitlines() == [
        "W0101 00:00:00.000000 1 cuda.cc:1] of a driver",
        "plain",
    ]
    assert peers._gone(held) == "process 1"


@pytest.mark.parametrize("cause", ["Gloo AllGather failed: Connection closed by peer", "of mine"])
def test_only_errors_of_peers_count(cause, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(peers.os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    expected = SystemExit if cause.startswith("Gloo") else OSError
    with pytest.raises(expected) as caught, peers.ending_with_others(lambda: "saved are none"):
        raise OSError("a file") from ValueError(cause)
    if expected is SystemExit:
        assert caught.value.code == peers.LOST
        assert capsys.readouterr().err.startswith("lost: process 1 is gone; saved are none; ")


def test_what_is_saved(tmp_path):
    assert checkpoint.saved(tmp_path) == "nothing is saved yet"
    variables = {"params": {"kernel": np.ones(2, np.float32)}}
    checkpoint.save_result(tmp_path / "pretrain", variables, {})
    with contextlib.closing(
        checkpoint.StageCheckpoints(tmp_path / "prune" / "checkpoints")
    ) as states:
        states.save_last(40, variables, {"step": np.int32(40)}, {})
    assert checkpoint.saved(tmp_path) == "saved are pretrain, and prune up to step 40"
