"""How a program ends: a UserError in one message, a bug with its traceback, signals, and readers that go away."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from paths import ROOT
from training_helpers import drawn, has_lines, has_mapped, run_script, start_script, train_here, wait_for

from data.dataset import first_readable
from data.sources.pairs import Pair
from errors import UserError, child_news_postponed, one_line, printable, run_job

pytestmark = pytest.mark.slow


def run_python(code: str, **options) -> subprocess.CompletedProcess:
    done = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(done, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


def bare_zip():
    list(zip([1], [2, 3], strict=True))


def bare_unpacking():
    a, b = [1]
    return a, b


def bare_max():
    max([])


class TestUserError:
    def test_is_one_message_and_exit_code_2(self, capsys):
        def job():
            raise UserError("--lr -1: must be at least 0")

        assert run_job(job) == 2
        assert capsys.readouterr().err == "error: --lr -1: must be at least 0\n"

    @pytest.mark.parametrize("bug", [bare_zip, bare_unpacking, bare_max])
    def test_a_bug_of_ours_shows_its_traceback(self, bug):
        """The last line of such a traceback is in our own file, and ValueError is what Python raises."""
        with pytest.raises(ValueError):
            run_job(bug)

    @pytest.mark.parametrize("bug", [bare_zip, bare_unpacking, bare_max])
    def test_a_bug_of_ours_is_no_broken_file(self, bug):
        class Broken:
            samples = (Pair("a", Path("a.png"), Path("b.png")),) * 2
            read = staticmethod(lambda sample: bug())

        with pytest.raises(ValueError) as caught:
            first_readable(Broken(), 0, lambda sample, content: content)
        assert not isinstance(caught.value, UserError)

    @pytest.mark.parametrize("workers", ["0", "1"])
    def test_a_bug_in_reading_ends_the_run_with_its_traceback(self, tmp_path, monkeypatch, workers):
        monkeypatch.setattr("data.sources.masks.MaskSource.read", lambda *args: bare_max())
        with pytest.raises(ValueError) as caught:
            train_here("linear", tmp_path / "run", *drawn(tmp_path / "data"), "--num-workers", workers)
        assert not isinstance(caught.value, UserError) and "max()" in str(caught.value)

    def test_from_a_loader_worker_it_is_the_message_alone(self, tmp_path, monkeypatch, capsys):
        def unreadable(*args):
            raise UserError("a.png cannot be read\n  indented: as such")

        monkeypatch.setattr("data.sources.masks.MaskSource.read", unreadable)
        assert train_here("linear", tmp_path / "run", *drawn(tmp_path / "data"), "--num-workers", "1") == 2
        message = capsys.readouterr().err.split("error: ")[1]
        assert message.startswith("none of the 4 training samples can be read") and "Traceback" not in message
        assert "indented: as such" in message


HOSTILE = "a\x1b[31mred\x07\nerror: \u202efake.png"


class TestWhatIsPrinted:
    """Names of files and classes come from outside: they move no cursor, ring no bell and begin no line."""

    def test_control_characters_become_escapes(self):
        assert printable(HOSTILE) == "a\\x1b[31mred\\x07\nerror: \\u202efake.png"
        assert one_line(HOSTILE) == "a\\x1b[31mred\\x07\\nerror: \\u202efake.png"
        assert printable("Größe\tñ 漢字 🙂") == "Größe\tñ 漢字 🙂"

    def test_a_message_of_megabytes_is_cut(self, capsys):
        def job():
            raise UserError("x" * 10_000_000)

        assert run_job(job) == 2 and len(capsys.readouterr().err) < 21_000

    def test_in_the_check_training_and_messages(self, tmp_path, capsys):
        """A mask of that name that is broken, and a class of that name."""
        data = drawn(tmp_path / "data")
        for kind in ("images", "masks"):
            folder = tmp_path / "data" / kind / "train"
            (folder / "0000.png").rename(folder / HOSTILE)
        path = tmp_path / "data" / "masks" / "train" / HOSTILE
        path.write_bytes(path.read_bytes()[:-40])
        data += ["--class-names", HOSTILE, "b", "c", "d", "e", "--max-steps", "1"]
        assert train_here("linear", tmp_path / "run", *data) == 2
        assert train_here("linear", tmp_path / "run", *data, "--on-bad-sample", "skip") == 0
        check = [sys.executable, str(ROOT / "demo/check_dataset.py"), *data[:10], *data[12:-2]]
        done = subprocess.run(check, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        captured = capsys.readouterr()
        for text in (captured.out, captured.err, done.stdout, done.stderr):
            assert not set(text) & set("\x1b\x07\u202e") and "\nerror: fake" not in text
        assert "\\x1b[31mred" in captured.err and "\\x1b[31mred" in done.stdout


class TestSignals:
    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_while_libraries_load_it_ends_at_once(self, signum):
        """Nothing is raised into an import, where it would come out as another error."""
        code = f"""
            import os, signal, sys
            signal.signal({int(signum)}, signal.SIG_DFL)  # the tests themselves may run under nohup
            from errors import run_job
            class Finder:
                def find_spec(self, name, path=None, target=None):
                    os.kill(os.getpid(), {int(signum)})
            def job():
                sys.meta_path.insert(0, Finder())
                import wave
            run_job(job)
        """
        done = run_python(code)
        assert done.returncode == 128 + signum and "Traceback" not in done.stderr, done.stderr

    def test_a_signal_that_is_ignored_from_the_start_stays_ignored(self):
        """As nohup does with SIGHUP."""
        code = f"""
            import os, signal
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            from errors import run_job, stopping_at_once, stopping_gently
            def job():
                for standing in (stopping_at_once, stopping_gently):
                    with standing():
                        os.kill(os.getpid(), {int(signal.SIGHUP)})
                os.kill(os.getpid(), {int(signal.SIGHUP)})
                print("alive")
            raise SystemExit(run_job(job))
        """
        done = run_python(code)
        assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


class TestReadersThatGoAway:
    def test_the_job_goes_on_and_its_exit_code_counts(self):
        code = """
            import sys
            from errors import run_job
            def job():
                for i in range(100_000):
                    print("line", i, flush=True)
                    print("line", i, file=sys.stderr, flush=True)
                return 3
            raise SystemExit(run_job(job))
        """
        for stream in ("stdout", "stderr"):
            process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(code)],
                cwd=ROOT,
                text=True,
                **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: subprocess.PIPE},
            )
            reader = getattr(process, stream)
            assert reader.readline() == "line 0\n"
            reader.close()
            assert process.wait(60) == 3

    def test_a_training_survives_head_1(self, tmp_path):
        data = " ".join(f"'{word}'" for word in drawn(tmp_path / "data"))
        train = f"'{sys.executable}' '{ROOT}/demo/train_linear_head.py' {data} --checkpoint-dir '{tmp_path}/run'"
        small = "--backbone test_vit --weights random --max-steps 3 --num-workers 0 --batch-size 2"
        script = f"set -o pipefail; {train} {small} 2>&1 | head -1"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and list((tmp_path / "run").glob("linear_checkpoint_*.pth")), done.stderr


def test_closing_the_terminal_saves_as_sigterm_does(tmp_path):
    run = tmp_path / "run"
    process = start_script("linear", run, *drawn(tmp_path / "data"), "--epochs", "5000", "--log-interval", "1")
    wait_for(process, lambda: has_lines(run, "linear_", 3))
    os.kill(process.pid, signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 129 and list(run.glob("linear_checkpoint_step_*.pth")), err


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells from Linux's /proc what is loaded")
@pytest.mark.parametrize("library", ["multiarray_umath", "libtorch_cpu", "scipy", "the folder"])
def test_ctrl_c_soon_after_the_start_leaves_no_traceback(tmp_path, library):
    """While NumPy, torch and SciPy are loaded, and when the folder of the run is made."""
    run = tmp_path / "run"
    is_fresh = library != "the folder"
    process = start_script("linear", run, *drawn(tmp_path / "data"), "--epochs", "5000", is_fresh=is_fresh)
    wait_for(process, run.exists if library == "the folder" else lambda: has_mapped(process, library))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and "RecursionError" not in err and "Traceback" not in err, err


def test_scripts_report_a_mistake_in_one_line(tmp_path):
    done = run_script("upernet", tmp_path / "run", "--image-paths", "nowhere/*", "--mask-paths", "nowhere/*")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_news_of_a_child_waits_and_then_comes():
    """As the handler of a DataLoader has it, which raises where the program is."""

    def lost(signum, frame):
        raise RuntimeError("lost")

    before = signal.signal(signal.SIGCHLD, lost)
    try:
        done = []
        with pytest.raises(RuntimeError, match="lost"), child_news_postponed():
            os.kill(os.getpid(), signal.SIGCHLD)
            done.append("the step")
        assert done and signal.getsignal(signal.SIGCHLD) is lost
        with child_news_postponed():
            pass
    finally:
        signal.signal(signal.SIGCHLD, before)
