"""Plugins, ours and third parties': every distribution may add modules to this package.

A third party ships `mta/plugins/NAME.py` in its own distribution, and no `__init__.py` beside or
above it. The one line below makes such modules part of this package wherever they lie on
`sys.path`. `mta.plugins.find` finds what they offer; docs/plugins.md shows how to write one.
"""

from twisted.plugin import pluginPackagePaths

__path__.extend(pluginPackagePaths(__name__))
