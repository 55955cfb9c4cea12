"""Run Python scripts without the seconds that their imports take.

A server process imports MMDetection once and forks for each script. The fork
runs the script as ``python SCRIPT ARGUMENTS`` would: with its own arguments,
environment, working directory and output. The server does not import mmpsbn;
the script does. Tests of how processes start and end use a new Python instead.

``python forked.py SCRIPT ARGUMENTS`` runs a script as a child process. It has
the exit status of the script and passes Ctrl-C to it.
"""

import atexit
import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress

#: Environment variable with the path of the server's socket.
SERVER = 'MMPSBN_FORK_SERVER'
# Variables that Python and libraries read as they start.
EARLY = ('PYTHON', 'OMP_', 'MKL_', 'CUDA_', 'LD_', 'MPL')
PR_SET_PDEATHSIG = 1  # Of Linux's prctl.h.


def end_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


# Server


def serve(path):
    """Fork for each connection. Return only in a fork, with its script."""
    end_with_parent()
    start = dict(os.environ)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        preload()
        server.bind(path)
        server.listen()
        print('ready', flush=True)
        while True:
            connection, _ = server.accept()
            if not os.fork():
                break
            connection.close()
            forget_ended()
    message, outputs, _, _ = socket.recv_fds(connection, 2**20, 2)
    request = json.loads(message)
    if early(request['env']) != early(start):
        connection.send(b'refused')
        os._exit(0)
    child = os.fork()
    if child:
        watch(child, connection)
    connection.close()
    become(outputs, start, **request)
    return sys.argv[0]


def forget_ended():
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def early(env):
    return {key: value for key, value in env.items() if key.startswith(EARLY)}


def preload():
    """Import what the tools import, except for mmpsbn."""
    for module in (
        'matplotlib.pyplot',
        'mmdet.apis',
        'mmdet.datasets',
        'mmdet.engine',
        'mmdet.evaluation',
        'mmdet.models',
        'mmdet.visualization',
        'mmengine.runner',
    ):
        importlib.import_module(module)
    import shortcuts

    shortcuts.take()
    assert 'mmpsbn' not in sys.modules
    # A fork has no other thread, and would wait for its locks.
    assert len(os.listdir('/proc/self/task')) == 1


def watch(child, connection):
    """Report the end of a script. End the script if its client ends."""
    ended = os.pidfd_open(child)
    while ended not in select.select([ended, connection], [], [])[0]:
        if connection.recv(16) != b'interrupt':
            os.kill(child, signal.SIGKILL)
            os._exit(0)
        os.kill(child, signal.SIGINT)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.send(str(status).encode())
    os._exit(0)


def become(outputs, before, command, cwd, env):
    """Give this process what a new Python gets from its parent."""
    import numpy as np

    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
        os.close(output)
    os.setsid()
    os.chdir(cwd)
    for key in before:
        os.environ.pop(key, None)  # What the imports have set remains.
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    np.random.seed()
    sys.argv = command
    sys.path[0] = os.path.dirname(os.path.abspath(command[0]))


def run_and_exit(script):
    """Run a script and end as Python does, except for freeing its memory."""
    status = 0
    try:
        runpy.run_path(script, run_name='__main__')
    except SystemExit as end:
        status = end.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


# Clients


def start_server():
    """Start a server that ends with this process, unless there is one."""
    if SERVER in os.environ:
        return
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = os.path.join(folder.name, 'socket')
    server = subprocess.Popen(
        [sys.executable, __file__, '--server', path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdout.readline() == b'ready\n', 'the server did not start'
    os.environ[SERVER] = path


def run_forked(command, cwd, env, stdout, stderr):
    """Run a script in a fork of the server.

    Returns:
        int or None: Its exit status; None if it needs a new Python, because
        the server has started with another environment.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(os.environ[SERVER])
        request = dict(command=command, cwd=str(cwd), env=dict(env))
        message = json.dumps(request).encode()
        socket.send_fds(connection, [message], [stdout, stderr])
        while True:
            try:
                answer = connection.recv(16)
                break
            except KeyboardInterrupt:
                connection.send(b'interrupt')
    return None if answer == b'refused' else int(answer)


def run_script(command, cwd=None, env=None, merged=False):
    """Run a script as ``subprocess.run`` does, and capture its output.

    Args:
        command (list[str]): The script and its arguments.
        cwd (str, optional): The working directory.
        env (dict, optional): The environment.
        merged (bool): Put what goes to stderr into stdout.
    """
    start_server()
    cwd, env = cwd or os.getcwd(), os.environ if env is None else env
    command = [os.fspath(word) for word in command]
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        files = [stdout, stdout if merged else stderr]
        status = run_forked(command, cwd, env, *(file.fileno() for file in files))
        if status is None:
            status = subprocess.call(
                [sys.executable, *command],
                cwd=cwd,
                env=env,
                stdout=files[0],
                stderr=files[1],
            )
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode(errors='replace'))
    return subprocess.CompletedProcess([sys.executable, *command], status, *texts)


def main(command):
    end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = None
    if command[0].endswith('.py'):
        status = run_forked(command, os.getcwd(), os.environ, 1, 2)
    if status is None:
        os.execv(sys.executable, [sys.executable, *command])
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == '__main__':
    if sys.argv[1] == '--server':
        run_and_exit(serve(sys.argv[2]))
    else:
        main(sys.argv[1:])
