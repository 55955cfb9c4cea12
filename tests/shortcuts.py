"""Skip what MMEngine does slowly and what changes no result of a test."""

import functools
import gc

from mmengine.config import config, utils
from mmengine.runner import runner
from yapf.yapflib import yapf_api


def unformatted(code, **style):
    """Return code without formatting it, in place of yapf's FormatCode."""
    compile(code, '<config>', 'exec')  # It raises a SyntaxError as FormatCode does.
    return code, True


def take():
    """Change MMEngine in this process and its forks."""
    # Configs that are written or logged are valid code without yapf, too. The
    # successors of MMEngine import it where they call it.
    for module in (config, yapf_api):
        module.FormatCode = unformatted
    # Packages and compilers do not change while tests run.
    config.is_installed = functools.cache(config.is_installed)
    utils._get_cfg_metainfo = functools.cache(utils._get_cfg_metainfo)
    runner.collect_env = functools.cache(runner.collect_env)
    # Each data set collects garbage, and would look at all that was imported.
    gc.collect()
    gc.freeze()
