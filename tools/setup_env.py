"""Set up ``.venv``: the pinned stack, MMCV compiled for it, and this package.

``make demo`` and ``make test`` call it. The variable STACK names another file
of ``requirements/stacks`` than the default; it gets a ``.venv-STACK``. The
script needs nothing but the standard library, resumes where an interrupted
call stopped, and does nothing when everything is in place. MMCV's wheel is
kept in the user's cache (``$XDG_CACHE_HOME/mmpsbn``, by default
``~/.cache/mmpsbn``) under the versions it was compiled for, so that another
clone need not compile it.
"""

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'requirements'
STACKS = REQUIREMENTS / 'stacks'
STACK = os.environ.get('STACK') or 'default'
VENV = ROOT / ('.venv' if STACK == 'default' else f'.venv-{STACK}')
PYTHON = VENV / 'bin' / 'python'
STAMP = VENV / 'set-up-complete'
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache') / 'mmpsbn'
GIB = 2**30


def say(message: str) -> None:
    print(f'[set-up] {message}', flush=True)


def run(*command, **kwargs) -> None:
    subprocess.run([str(part) for part in command], check=True, **kwargs)


def pip(*args) -> None:
    run(PYTHON, '-m', 'pip', '--disable-pip-version-check', *args)


def ask(code: str) -> str:
    """Return what ``code`` prints in the new environment."""
    return subprocess.run(
        [PYTHON, '-c', code], check=True, capture_output=True, text=True
    ).stdout.strip()


def requirements(path: Path) -> list:
    """The requirements in a file, with the names of what they install.

    The successors of MMEngine, MMCV and MMDetection install packages of the
    same names.
    """
    return [
        (line.removeprefix('onedl-').split('==')[0], line)
        for line in path.read_text().splitlines()
        if line and line[0] != '#'
    ]


def pins() -> dict:
    """The requirements of the stack, which replace those of ``base.txt``."""
    return dict(requirements(STACKS / f'{STACK}.txt'))


def fingerprint() -> str:
    """Changes when anything that the environment is made from changes."""
    digest = hashlib.sha256(sys.version.encode())
    for path in (
        *sorted(REQUIREMENTS.glob('*.txt')),
        STACKS / f'{STACK}.txt',
        ROOT / 'pyproject.toml',
        Path(__file__),
    ):
        digest.update(path.read_bytes())
    for name in ('FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST'):  # Of MMCV's operators.
        digest.update(os.environ.get(name, '').encode())
    return digest.hexdigest()


def check_stack() -> None:
    names = sorted(path.stem for path in STACKS.glob('*.txt'))
    if STACK not in names:
        sys.exit(
            f'STACK={STACK} is not known; choose one of '
            f'{", ".join(names)} (the files of requirements/stacks).'
        )


def check_python() -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        sys.exit(
            f'Python {sys.version.split()[0]} is not supported; '
            'use 3.10, 3.11 or 3.12 (make PYTHON=python3.11 ...).'
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        sys.exit(
            'This Python cannot make virtual environments; install '
            'its venv module (Debian: apt install python3-venv).'
        )


def check_compiler() -> None:
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if shutil.which(compiler) is None:
        sys.exit(
            f'No C++ compiler ({compiler}) was found, and MMCV has to '
            'be compiled; install one (Debian: apt install g++).'
        )
    header = Path(sysconfig.get_path('include')) / 'Python.h'
    if not header.is_file():
        sys.exit(
            f'{header} is missing, and MMCV has to be compiled; install '
            'the Python headers (Debian: apt install python3-dev).'
        )


def make_venv() -> None:
    works = (
        PYTHON.exists()
        and subprocess.run(
            [PYTHON, '-c', f'import pip, sys; assert sys.version == {sys.version!r}'],
            capture_output=True,
        ).returncode
        == 0
    )
    if not works:
        say(f'1/4 virtual environment in {VENV.name}/')
        run(sys.executable, '-m', 'venv', '--clear', VENV)


def install_stack() -> None:
    say(
        '2/4 torch, MMEngine, MMDetection and what they need '
        '(a download of about 0.4 GB, more with CUDA)'
    )
    stack = pins()
    pip(
        'install',
        stack.pop('torch'),
        stack.pop('setuptools'),
        '-r',
        REQUIREMENTS / 'build.txt',
        '-c',
        REQUIREMENTS / 'base.txt',
    )
    base = [
        line
        for name, line in requirements(REQUIREMENTS / 'base.txt')
        if name not in stack
    ]
    del stack['mmcv']
    pip(
        'install',
        '--no-deps',
        '--no-build-isolation',
        *stack.values(),
        *base,
        '-r',
        REQUIREMENTS / 'cluster.txt',
        '-r',
        REQUIREMENTS / 'onnx.txt',
        '-r',
        REQUIREMENTS / 'prune.txt',
        '-r',
        REQUIREMENTS / 'tests.txt',
    )
    pip(
        *('install', '--no-deps', '--upgrade', '--target', VENV / 'timm'),
        *('-r', REQUIREMENTS / 'timm.txt'),
    )


def install_mmcv() -> None:
    requirement = pins()['mmcv']
    # Which operators are built depends on torch, on Python, and on whether
    # a GPU is there while building, or the variables of fingerprint().
    key = ask(
        'import os, sys, sysconfig, torch; print("-".join(['
        f'"{requirement.replace("==", "")}", '
        '"torch" + torch.__version__, '
        'sys.implementation.cache_tag, sysconfig.get_platform(), '
        '"cuda" + os.getenv("TORCH_CUDA_ARCH_LIST", "") '
        'if torch.cuda.is_available() or os.getenv("FORCE_CUDA") == "1" else "cpu"]))'
    )
    home = CACHE.expanduser() / key
    home.mkdir(parents=True, exist_ok=True)
    with open(home / 'lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('3/4 another set-up is compiling MMCV; waiting for it')
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(home.glob('*.whl')):
            check_compiler()
            build_mmcv(requirement, home)
    say('4/4 MMCV and this package')
    pip('install', '-q', '--no-deps', '--force-reinstall', *home.glob('*.whl'))


def build_mmcv(requirement: str, home: Path) -> None:
    """Compile MMCV's wheel into ``home``; an interrupted build resumes."""
    jobs = os.environ.get('MAX_JOBS') or str(build_jobs())
    say(
        f'3/4 compiling {requirement} with {jobs} jobs: about ten minutes '
        'on two cores, once; the wheel is kept in ' + str(home)
    )
    build = home / 'build'
    source = build / requirement.replace('-', '_').replace('==', '-')
    if not (source / 'setup.py').is_file():
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir()
        pip(
            'download',
            '-q',
            '--no-deps',
            '--no-binary',
            ':all:',
            '--no-build-isolation',
            '-d',
            build,
            requirement,
        )
        unpacked = build / 'unpacked'
        shutil.unpack_archive(f'{source}.tar.gz', unpacked)
        (unpacked / source.name).rename(source)
    environment = dict(
        os.environ,
        **compiler_flags(),
        MMCV_WITH_OPS='1',
        MAX_JOBS=jobs,
        PATH=f'{PYTHON.parent}{os.pathsep}{os.environ["PATH"]}',
    )
    log = home / 'build.log'
    command = [
        str(PYTHON),
        '-m',
        'pip',
        'wheel',
        '-v',
        '--no-build-isolation',
        '--no-deps',
        '-w',
        str(build / 'dist'),
        str(source),
    ]
    with (
        subprocess.Popen(
            command,
            env=environment,
            text=True,
            errors='replace',
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
        open(log, 'w') as file,
    ):
        try:
            show_progress(process.stdout, file)
        except BaseException:
            # Otherwise, the compilers would write into the resumed build.
            os.killpg(process.pid, signal.SIGTERM)
            raise
    if process.returncode:
        tail = log.read_text().splitlines()[-20:]
        sys.exit(
            '\n'.join(tail) + f'\nMMCV could not be compiled: the end '
            f'of the compiler output is above, all of it in {log}. Correct the '
            'cause, and repeat the command.'
        )
    (wheel,) = (build / 'dist').glob('*.whl')
    os.replace(wheel, home / wheel.name)
    shutil.rmtree(build)


def compiler_flags() -> dict:
    """Python's flags, which these variables replace, and no debug information.

    It takes 40 % of the compile time.
    """
    flags = f'{sysconfig.get_config_var("CFLAGS")} -g0'
    return {name: os.environ.get(name) or flags for name in ('CFLAGS', 'CXXFLAGS')}


def build_jobs() -> int:
    """As many compilers as there are cores and 2 GiB of memory for each."""
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return max(1, min(len(os.sched_getaffinity(0)), memory // (2 * GIB)))


def show_progress(lines, log) -> None:
    """Write the compiler's lines to ``log`` and count its files on screen."""
    start, shown = time.monotonic(), -1
    for line in lines:
        log.write(line)
        step = re.match(r'\s*\[(\d+)/(\d+)\]', line)
        if step is None:
            continue
        done, total = map(int, step.groups())
        minutes = (time.monotonic() - start) / 60
        message = f'      {done} of {total} files, {minutes:.1f} min'
        if sys.stdout.isatty():
            print(f'\r{message}', end='' if done < total else '\n', flush=True)
        elif done * 10 // total > shown:
            shown = done * 10 // total
            print(message, flush=True)


def main() -> None:
    check_stack()
    check_python()
    state = fingerprint()
    if STAMP.is_file() and STAMP.read_text() == state:
        return
    tag = sys.implementation.cache_tag
    if not list(CACHE.expanduser().glob(f'*-{tag}-*/*.whl')):
        check_compiler()
    start = time.monotonic()
    make_venv()
    STAMP.unlink(missing_ok=True)
    install_stack()
    install_mmcv()
    pip('install', '-q', '--no-deps', '--no-build-isolation', '-e', ROOT)
    ask('import mmcv.ops, mmdet.apis, mmpsbn')
    STAMP.write_text(state)
    say(f'done in {(time.monotonic() - start) / 60:.1f} min')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('\nInterrupted. The same command resumes from here.')
    except subprocess.CalledProcessError as error:
        sys.exit(
            f'{error.stderr or ""}Set-up stopped: the command '
            f'{" ".join(map(str, error.cmd))!r} failed. The same '
            'command as before resumes from here.'
        )
