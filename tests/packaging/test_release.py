"""A release: what it refuses, what images install and from which files, and the whole of it from a clone."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release import __main__ as release_of
from release import images
from release.__main__ import notes, obstacles
from release.images import NoDigest
from release.locks import DISTRIBUTIONS, IMAGES, Image, locked, stale
from tests.support.ports import free_port
from tests.support.waiting import HANG_S, wait_for

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
CHANGELOG = "# Changelog\n\n## Unreleased\n\n## 0.2.0 (2026-11-27)\n\n- A line.\n\n## 0.1.0\n\n- The first.\n"
SAME = dict.fromkeys(DISTRIBUTIONS, "0.2.0")


@pytest.mark.parametrize(
    ("version", "text"), [("0.2.0", "- A line."), ("0.1.0", "- The first."), ("0.2", ""), ("Unreleased", "")]
)
def test_the_notes_are_the_section_of_the_version(version: str, text: str) -> None:
    assert notes(CHANGELOG, version) == text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, []),
        ({"versions": SAME | {"local": "0.1.9"}}, ["local 0.1.9): make version"]),
        ({"versions": dict.fromkeys(DISTRIBUTIONS, "0.3.0")}, ["no section '## 0.3.0'"]),
        ({"changelog": CHANGELOG.replace("Unreleased\n", "Unreleased\n\n- Late.\n")}, ["under '## Unreleased'"]),
        ({"changed": " M README.md\n?? new\n"}, ["README.md, ?? new"]),
        ({"tags": {"v0.1.0", "v0.2.0"}}, ["v0.2.0 is the tag of another commit"]),
        ({"tags": {"v0.1.0"}}, []),
        ({"changed": " M a", "tags": {"v0.2.0"}}, ["not committed", "another commit"]),
    ],
)
def test_what_stands_against_a_release_is_said_all_at_once(given: dict[str, object], said: list[str]) -> None:
    asked: dict[str, object] = {"versions": SAME, "changelog": CHANGELOG, "changed": "", "tags": set()} | given
    found = obstacles(**asked)  # type: ignore[arg-type]
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))


def needed(requirement: Requirement, environment: dict[str, str], found: set[str]) -> None:
    """By name what is installed with it, on such a machine."""
    name = canonicalize_name(requirement.name)
    if name in found and not requirement.extras:
        return
    found.add(name)
    try:
        lines = requires(name) or []
    except PackageNotFoundError:  # not on this machine: then nothing here needs it either
        return
    for each in map(Requirement, lines):
        extras = requirement.extras or {""}
        if each.marker is None or any(each.marker.evaluate({**environment, "extra": extra}) for extra in extras):
            needed(each, environment, found)


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_an_image_installs_by_digest_all_that_it_needs_and_nothing_of_another_version(image: Image) -> None:
    has = locked(image.lock.read_text())
    assert stale(image.lock.read_text(), CONSTRAINTS) == [], "make lock"
    wanted: set[str] = set()
    for part, name in zip(image.parts, image.distributions, strict=True):
        _, bracket, extras = part.partition("[")
        needed(Requirement(f"{name}{bracket}{extras}"), {"python_version": "3.12"}, wanted)
    ours = set(DISTRIBUTIONS.values())
    assert wanted - ours <= has.keys(), "make lock"
    assert not has.keys() & ours
    assert "hatchling" in has


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_the_recipe_of_an_image_asks_for_digests(image: Image) -> None:
    recipe = re.sub(r" \\\n", " ", (ROOT / image.recipe).read_text())
    commands = [each.split("&&")[0].split("pip install ")[1] for each in re.findall(r"[^&]*pip install [^&]*", recipe)]
    assert f"COPY deploy/docker/{image.lock.name} " in recipe
    assert [each.replace("'", "").split() for each in commands] == [
        ["--no-cache-dir", "--require-hashes", "--only-binary", ":all:", "-r", image.lock.name],
        ["--no-cache-dir", "--no-deps", "--no-build-isolation", *image.parts],
    ]


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ("six==1.17.0", "six is not locked"),
        ("six>=1 --hash=sha256:00", "six is not locked"),
        ("six \\\n    --hash=md5:0", "six"),
    ],
)
def test_a_lock_without_digest_or_version_is_none(entry: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        locked(f"{entry}\n")


def test_a_file_that_only_calls_itself_that_version_is_not_installed(tmp_path: Path) -> None:
    """As an index gives it that was taken over. The control: by the version alone it is."""
    (tmp_path / "six").mkdir()
    (tmp_path / "six" / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "six"\nversion = "1.17.0"\n[tool.hatch.build.targets.wheel]\nonly-include = ["six.py"]\n'
    )
    (tmp_path / "six" / "six.py").write_text("stolen = True\n")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(tmp_path / "six")], check=True)
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    install = [*pip, "--python", str(tmp_path / "venv/bin/python"), "--isolated", "install", "--no-index", "--no-deps"]
    install += ["--find-links", str(tmp_path)]
    invoker = next(image for image in IMAGES if image.name == "invoker")
    [entry] = re.findall(r"^six==(?:.*\\\n)+.*", invoker.lock.read_text(), re.MULTILINE)
    (tmp_path / "lock").write_text(entry + "\n")
    refused = subprocess.run([*install, "-r", str(tmp_path / "lock")], capture_output=True, text=True, check=False)
    assert refused.returncode and "DO NOT MATCH" in refused.stderr
    assert subprocess.run([*install, "six==1.17.0"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_wheels_are_built_by_the_backend_that_the_locks_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the index has under its name by now. The control: pip by itself takes that."""
    newer = tmp_path / "index" / "hatchling-99.0-py3-none-any.whl"
    newer.parent.mkdir()
    with zipfile.ZipFile(newer, "w") as wheel:
        wheel.writestr("hatchling/__init__.py", "")
        wheel.writestr("hatchling/build.py", "raise SystemExit('the newest backend was run')")
        wheel.writestr("hatchling-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: hatchling\nVersion: 99.0\n")
        wheel.writestr(
            "hatchling-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("hatchling-99.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(newer.parent))
    control = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT / "contract")]
    assert "the newest backend was run" in subprocess.run(control, capture_output=True, text=True, check=False).stderr
    monkeypatch.setattr(release_of, "DISTRIBUTIONS", {"contract": DISTRIBUTIONS["contract"]})
    [built] = release_of.build(tmp_path / "out")
    with zipfile.ZipFile(built) as wheel:
        [told] = [name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL")]
        assert (
            f"Generator: hatchling {re.findall('^hatchling==(.*)$', CONSTRAINTS, re.MULTILINE)[0]}"
            in wheel.read(told).decode()
        )


def test_every_image_that_is_not_ours_is_found() -> None:
    found = {each.image.partition(":")[0] for each in images.named(ROOT)}
    assert {"python", "kong", "redis", "nginx", "quay.io/oauth2-proxy/oauth2-proxy", "prom/prometheus"} <= found
    assert not any("kong-claude" in image for image in found)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A real one with one image, `thing:1`; its address."""
    for program, package in (("docker-registry", "docker-registry"), ("skopeo", "skopeo")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: apt-get install {package})")
    port = free_port()
    configuration = {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(tmp_path / "stored")}}}
    configuration["http"] = {"addr": f"127.0.0.1:{port}"}
    (tmp_path / "registry.yml").write_text(json.dumps(configuration))
    process = subprocess.Popen(["docker-registry", "serve", str(tmp_path / "registry.yml")], stderr=subprocess.DEVNULL)
    try:
        layout = tmp_path / "layout"
        made = {"schemaVersion": 2, "config": blob(layout, {"architecture": "amd64", "os": "linux"}), "layers": []}
        made["mediaType"] = "application/vnd.oci.image.manifest.v1+json"
        index = {"schemaVersion": 2, "manifests": [blob(layout, made) | {"annotations": {REF: "1"}}]}
        (layout / "index.json").write_text(json.dumps(index))
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:1"]
        to = f"docker://127.0.0.1:{port}/thing:1"
        wait_for(
            lambda: subprocess.run([*copy, to], capture_output=True, check=False).returncode == 0, what="the registry"
        )
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(HANG_S)


REF = "org.opencontainers.image.ref.name"


def blob(layout: Path, content: dict[str, object]) -> dict[str, object]:
    data = json.dumps(content).encode()
    name = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    (layout / "blobs" / "sha256" / name).write_bytes(data)
    kind = str(content.get("mediaType", "application/vnd.oci.image.config.v1+json"))
    return {"mediaType": kind, "digest": f"sha256:{name}", "size": len(data)}


def test_digests_are_written_behind_the_tags_and_what_cannot_be_asked_stays(registry: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "part").mkdir(parents=True)
    recipe, compose = root / "part" / "Dockerfile", root / "docker-compose.yml"
    recipe.write_text(f"FROM {registry}/thing:1 AS first\nFROM first\nRUN true\n")
    recipe.write_text(recipe.read_text() + f"FROM --platform=linux/amd64 {registry}/thing:1\n")
    compose.write_text(
        f"services:\n  a:\n    image: {registry}/thing:1\n  b:\n    image: {registry}/none:1  # why\n"
        f"  c:\n    image: '{registry}/thing:1'\n  d:\n  - image: \"{registry}/thing:1\"\n"
    )
    [failure] = images.pin(root, "--tls-verify=false")
    assert failure.startswith(f"{registry}/none:1: ")
    said = images.digest(f"{registry}/thing:1", "--tls-verify=false")
    assert recipe.read_text().splitlines()[0] == f"FROM {registry}/thing:1@{said} AS first"
    assert recipe.read_text().splitlines()[-1] == f"FROM --platform=linux/amd64 {registry}/thing:1@{said}"
    for quote in ("", "'", '"'):
        assert f"image: {quote}{registry}/thing:1@{said}{quote}\n" in compose.read_text()
    assert [each.image for each in images.named(root) if not each.pinned] == [f"{registry}/none:1"]
    with pytest.raises(NoDigest):
        images.digest(f"{registry}/thing:2", "--tls-verify=false")


@pytest.mark.slow
@pytest.mark.xdist_group("wheels")
def test_a_release_from_a_clone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    # Not by `make`, which would set this environment up for the clone.
    venv.create(tmp_path / "tools", with_pip=True, symlinks=True)
    python = tmp_path / "tools" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "pip>=25.1"], check=True)
    subprocess.run([*pip, "-c", "constraints.txt", "--group", "release"], cwd=clone, check=True)

    def release() -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, "-m", "release"], cwd=clone, capture_output=True, text=True, check=False)

    def commit() -> None:
        author = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com"]
        subprocess.run(["git", *author, "commit", "-qam", "A release"], cwd=clone, check=True)

    subprocess.run(["make", "version", "VERSION=7.8.9"], cwd=clone, check=True)
    refused = release()
    assert refused.returncode and "CHANGELOG.md has no section '## 7.8.9'" in refused.stderr
    assert "not committed" in refused.stderr
    text = (clone / "CHANGELOG.md").read_text()
    (clone / "CHANGELOG.md").write_text(text.replace("## Unreleased\n", "## Unreleased\n\n## 7.8.9 (2030-01-02)\n"))
    commit()
    done = release()
    assert done.returncode == 0, done.stderr
    out = clone / "build" / "release"
    wheels = {path.name: path.read_bytes() for path in out.glob("*-7.8.9-py3-none-any.whl")}
    assert len(wheels) == len(DISTRIBUTIONS)
    again = f"from release.__main__ import build\nfrom pathlib import Path\nbuild(Path({str(tmp_path / 'again')!r}))"
    subprocess.run([python, "-c", again], cwd=clone, check=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == wheels
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    assert len((out / "SHA256SUMS").read_text().splitlines()) == len(list(out.iterdir())) - 1
    for image in IMAGES:
        told = json.loads((out / f"{image.name}-7.8.9.cdx.json").read_text())
        has = {canonicalize_name(part["name"]) for part in told["components"]}
        assert {name for name, each in locked(image.lock.read_text()).items() if on_linux(each)} <= has
        assert "kong-claude-contract" in has and ("claude-invoker" in has) == (image.name == "invoker")


def on_linux(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()
