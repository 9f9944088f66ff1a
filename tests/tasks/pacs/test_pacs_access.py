"""Passwords, certificates and AE titles that are wrong; configurations that are. One sentence each, without a secret."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.errors import UsageError
from tasks.pacs.archive import Denied, Unavailable, open_archive
from tasks.pacs.config import load_pacs

ROOT = Path(__file__).parents[3]


def echo(path: Path) -> None:
    with open_archive(load_pacs(path)) as archive:
        archive.echo()


def test_wrong_password(pacs, desk, monkeypatch):
    monkeypatch.setenv("TEST_PACS_PASSWORD", "not it")
    with pytest.raises(Denied, match="refuses the credentials given") as error:
        echo(pacs.config(desk.folder, "dicomweb"))
    assert "not it" not in str(error.value)
    assert error.value.exit_code == 2


def test_no_credentials(pacs, desk):
    with pytest.raises(Denied, match="without credentials"):
        echo(pacs.config(desk.folder, "dicomweb", auth=None))


def test_bearer_token_is_sent(make_pacs, desk):
    """Orthanc itself knows no tokens, so the archive's answer to one is a refusal; what is sent is seen in its header."""
    pacs = make_pacs()
    token = desk.folder / "token"
    token.write_text("abc.def\n")
    path = pacs.config(desk.folder, "dicomweb", auth={"kind": "bearer", "token": {"file": str(token)}})
    with open_archive(load_pacs(path)) as archive:
        assert archive._session.headers["Authorization"] == "Bearer abc.def"
        with pytest.raises(Denied, match="refuses the credentials given"):
            archive.echo()


def test_netrc_is_not_used(pacs, desk, monkeypatch):
    netrc = desk.folder / "netrc"
    netrc.write_text("machine 127.0.0.1 login semiflow password correct horse\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with pytest.raises(Denied):
        echo(pacs.config(desk.folder, "dicomweb", auth=None))


@pytest.mark.parametrize("kind", ["dicomweb", "get"])
def test_nobody_there(pacs, desk, kind):
    nowhere = {"url": "http://127.0.0.1:9/dicom-web"} if kind == "dicomweb" else {"port": 9}
    with pytest.raises(Unavailable, match="refuses connections") as error:
        echo(pacs.config(desk.folder, kind, **nowhere))
    assert error.value.exit_code == 1


def test_wrong_path(pacs, desk):
    with pytest.raises(Exception, match="check url"):
        echo(pacs.config(desk.folder, "dicomweb", url=f"{pacs.root}/elsewhere"))


def test_wrong_called_ae_title(pacs, desk):
    with pytest.raises(Denied, match="called_aet must be its AE title"):
        echo(pacs.config(desk.folder, "get", called_aet="OTHER"))


def test_unregistered_calling_ae_title(pacs, desk):
    with pytest.raises(Unavailable, match="STRANGER is registered there"):
        desk.fetch(pacs.config(desk.folder, "get", calling_aet="STRANGER"))


def test_unknown_destination_of_a_move(make_pacs, make_study, desk):
    everybody = {"DicomModalities": {}, "DicomAlwaysAllowFind": True, "DicomAlwaysAllowMove": True}
    pacs = make_pacs(*make_study("Carol", series=1, slices=1), extra=everybody)
    summary = desk.fetch(pacs.config(desk.folder, "move"))
    assert dict(summary.studies) == {"failed": 1}
    assert "SEMIFLOW may not be registered as its destination" in summary.unfinished[0]


def test_port_of_a_move_is_taken(pacs, desk):
    with pytest.raises(UsageError, match=r"cannot listen .* another listen.port"):
        desk.fetch(pacs.config(desk.folder, "move", listen={"host": "127.0.0.1", "port": pacs.http}))


@pytest.fixture(scope="module")
def secure(request, certificates, orthanc_installed, tmp_path_factory, make_study):
    pacs = type(request.getfixturevalue("pacs"))(tmp_path_factory.mktemp("secure"), tls=certificates["ours"]).start()
    pacs.load(*make_study("Dora", series=1, slices=2))
    yield pacs
    pacs.kill()


@pytest.mark.parametrize("kind", ["dicomweb", "get", "move"])
def test_tls_with_client_certificates(secure, desk, kind):
    assert desk.fetch(secure.config(desk.folder, kind)).fetched == 2


@pytest.mark.parametrize("kind", ["dicomweb", "get"])
def test_certificate_of_an_untrusted_authority(secure, certificates, desk, kind, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates["ours"]["ca"]))  # must not override the configuration
    tls = {name: str(path) for name, path in (certificates["ours"] | {"ca": certificates["others"]["ca"]}).items()}
    with pytest.raises(Denied, match="no trusted connection"):
        echo(secure.config(desk.folder, kind, tls=tls))


@pytest.mark.parametrize("kind", ["dicomweb", "get"])
def test_our_certificate_is_missing(secure, certificates, desk, kind):
    with pytest.raises((Denied, Unavailable), match="cert"):
        echo(secure.config(desk.folder, kind, tls={"ca": str(certificates["ours"]["ca"])}))


def test_plain_text_to_a_tls_port(secure, desk):
    with pytest.raises((Denied, Unavailable), match="tls"):
        echo(secure.config(desk.folder, "get", tls=None))


@pytest.mark.parametrize(("changes", "told"), [
    ({"auth": {"kind": "basic", "user": "u", "password": "hunter2"}}, "auth.basic.password"),
    ({"password": "hunter2"}, "password"),
    ({"url": "https://u:hunter2@pacs.example.org/dicom-web"}, "must not hold a user or password"),
    ({"url": "http://pacs.example.org/dicom-web"}, "in the clear"),
    ({"auth": {"kind": "basic", "user": "u", "password": {"env": "A", "file": "hunter2"}}}, "exactly one of"),
    ({"query": {}}, "the whole archive"),
    ({"query": {"study_date": "2024"}}, "study_date"),
    ({"tls": {"ca": "hunter2.pem"}}, "does not exist"),
    ({"kind": "hunter2"}, "kind|tag"),
    ({"timeout_s": 0}, "timeout_s"),
])
def test_wrong_configurations_are_told_without_their_values(desk, changes, told):
    content = {"kind": "dicomweb", "url": "https://pacs.example.org/dicom-web", "query": {"modalities": ["MR"]},
               "auth": {"kind": "basic", "user": "u", "password": {"env": "A"}}} | changes
    path = desk.folder / "x.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match=told) as error:
        load_pacs(path)
    assert "hunter2" not in str(error.value)


def test_missing_secret(pacs, desk, monkeypatch):
    monkeypatch.delenv("TEST_PACS_PASSWORD")
    with pytest.raises(UsageError, match="environment variable TEST_PACS_PASSWORD"):
        echo(pacs.config(desk.folder, "dicomweb"))


def test_wildcards_in_a_list_are_refused(pacs, desk):
    ids = desk.folder / "ids.txt"
    ids.write_text("ID-Alice\n*\n")
    config = pacs.config(desk.folder, "dicomweb", query={"ids": {"attribute": "PatientID", "file": str(ids)}})
    with pytest.raises(UsageError, match=r"line 2 .* wildcard"):
        desk.fetch(config)


def test_the_example_is_right():
    assert load_pacs(ROOT / "conf/pacs/example.yaml").kind == "dicomweb"


def test_command_line(pacs, desk):
    key = desk.folder / "key"
    key.write_bytes(b"0123456789abcdef")

    def call(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "tasks.pacs", *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    config = str(pacs.config(desk.folder, "dicomweb"))
    assert "python -m tasks.pacs retrieve" in call("--help").stdout
    assert "2 studies, 12 instances" in call("find", "--pacs", config, "--key", str(key)).stdout
    done = call("retrieve", "--pacs", config, "--key", str(key), "--out", str(desk.inbox), "--identified")
    assert (done.returncode, done.stderr) == (0, "")
    assert "studies: 2 handed on; instances: 12 fetched" in done.stdout
    other = desk.folder / "other"
    other.write_bytes(b"fedcba9876543210")
    again = call("retrieve", "--pacs", config, "--key", str(other), "--out", str(desk.inbox), "--identified")
    assert again.returncode == 2
    assert "filled with another key" in again.stderr and "Traceback" not in again.stderr
