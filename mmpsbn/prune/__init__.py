from mmpsbn.prune.pruned_files import Pruned, prune
from mmpsbn.prune.removal import Removal, remove_constants

__all__ = ['Pruned', 'Removal', 'prune', 'remove_constants']
