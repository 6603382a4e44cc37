"""The demo on a model of a few seconds: it learns, agrees with one device and its own audit, and says so."""

from __future__ import annotations

import json

import pytest

from parallelizer import cli, demo, errors

SIZES = {"model": "gpt-toy", "layers": 1, "embed": 32, "heads": 4, "sequence": 16}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "plan.html"
    return demo.run(devices=4, steps=6, html=str(path), quiet=True, **SIZES)


def test_it_learns_and_agrees_with_one_device(result):
    assert len(result.losses) == len(result.single_losses) == 6
    assert result.losses[-1] < result.losses[0]
    assert result.difference < 1e-5
    assert result.plan.topology == "cpu:4" and result.audit.ok and result.ok


def test_text_says_everything(result):
    for part in (result.plan.summary(), str(result.audit), "largest relative difference", f"{result.losses[0]:.6f}"):
        assert part in result.text
    assert f"wrote {result.html}" in result.text and "v5e:2x4 has 8 devices" in result.text


def test_page_and_json(result):
    with open(result.html) as file:
        assert "<html" in file.read()
    facts = json.loads(json.dumps(result.to_dict()))
    assert facts["losses"] == list(result.losses) and facts["mesh"] == dict(result.plan.mesh.sizes)
    assert facts["audit"]["ok"] is True


def test_command_line_prints_it(result, monkeypatch, capsys):
    seen = {}

    def run(**options):
        seen.update(options)
        return result

    monkeypatch.setattr(demo, "run", run)
    assert cli.main(["demo", "--devices", "4", "--steps", "6", "--html", "p.html", "--json"]) == 0
    assert seen == {"devices": 4, "steps": 6, "html": "p.html", "quiet": True}
    assert json.loads(capsys.readouterr().out)["difference"] == result.difference
    assert cli.main(["demo", "--devices", "4"]) == 0
    assert "loss under the plan" in capsys.readouterr().out


def test_too_few_devices_or_steps():
    with pytest.raises(errors.TooFewDevicesError):
        demo.run(devices=64, quiet=True)
    with pytest.raises(ValueError, match="at least 2 steps"):
        demo.run(devices=4, steps=1, quiet=True)
