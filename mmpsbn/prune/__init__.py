from .pruned_files import Pruned, prune
from .removal import Removal, remove_constants

__all__ = ['Pruned', 'Removal', 'prune', 'remove_constants']
