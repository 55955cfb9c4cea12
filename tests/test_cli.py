"""How the tools end if something goes wrong."""

import pytest
import torch
from mmengine.logging import MMLogger

from mmpsbn.cli.errors import exit_with_message
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.errors import InputError


def fail():
    raise InputError('lr is -1; set it above 0.') from ValueError('the cause')


def end():
    """Return how a tool that fails ends."""
    with pytest.raises(SystemExit) as exit:
        with exit_with_message():
            fail()
    return exit.value.code


def test_users_see_one_message(capsys, monkeypatch):
    monkeypatch.delenv('MMPSBN_DEBUG', raising=False)
    assert end() == 'error: lr is -1; set it above 0.'
    assert capsys.readouterr().err == ''


def test_a_variable_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv('MMPSBN_DEBUG', '1')
    assert end() == 'error: lr is -1; set it above 0.'
    shown = capsys.readouterr().err
    assert 'ValueError: the cause' in shown and 'in fail' in shown


def test_the_log_file_has_the_cause(tmp_path, capsys):
    log = tmp_path / 'run.log'
    logger = MMLogger.get_instance('test_log', log_file=str(log))
    try:
        end()
    finally:
        MMLogger._instance_dict.pop('test_log')
        for handler in logger.handlers:
            handler.close()
    assert 'ValueError: the cause' in log.read_text()
    assert 'Traceback' not in capsys.readouterr().err


def test_an_unexpected_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), exit_with_message():
        1 / 0  # noqa: B018


def test_a_full_gpu_is_explained():
    full = torch.cuda.OutOfMemoryError(
        'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...'
    )
    with pytest.raises(SystemExit) as exit:
        with exit_with_message(), explain_config_errors():
            raise full
    assert exit.value.code.startswith(
        'error: CUDA out of memory. Tried to allocate 2.00 GiB. End other programs'
    )


def test_ctrl_c_has_the_status_of_a_shell(capsys):
    with pytest.raises(SystemExit) as exit, exit_with_message('--resume continues'):
        raise KeyboardInterrupt
    assert exit.value.code == 130
    assert 'interrupted; --resume continues.' in capsys.readouterr().err
