"""Installing packages that do not exist: a folder on the path, with a distribution's metadata."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from ablation import plugins
from ablation.config import folders

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"


class Installer:
    """Installs plug-ins for the length of a test."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._place, self._monkeypatch = place, monkeypatch
        self._modules = set(sys.modules)
        Plugins.instance()  # Hydra's own plugins store theirs once a process
        store = ConfigStore.instance()
        monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))

    def __call__(
        self, name: str, files: Mapping[str, str], version: str = "1.0", entry: str | None = None
    ) -> None:
        """Install a distribution.

        Args:
            name: its name; that of its package has underscores.
            files: text by path in the package.
            version: of the distribution.
            entry: what its entry point names; ``None`` means the package.
        """
        package = name.replace("-", "_")
        for path, text in {"__init__.py": "", **files}.items():
            place = self._place / package / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        self.register(name, version, entry or package)
        self._monkeypatch.syspath_prepend(str(self._place))
        forget()

    def example(self) -> None:
        """Install ``examples/plugin`` in place."""
        self.register("ablation-example", "0.1.0", "ablation_example")
        self._monkeypatch.syspath_prepend(str(self._place))
        self._monkeypatch.syspath_prepend(str(EXAMPLE))
        forget()

    def register(self, name: str, version: str, entry: str) -> None:
        """Write the metadata alone."""
        folder = self._place / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (folder / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{name} = {entry}\n")

    def close(self) -> None:
        """Forget what was imported."""
        for name in set(sys.modules) - self._modules:
            if getattr(sys.modules[name], "__file__", None) and self._owns(name):
                del sys.modules[name]

    def _owns(self, name: str) -> bool:
        path = Path(str(sys.modules[name].__file__))
        return path.is_relative_to(self._place) or path.is_relative_to(EXAMPLE)


@contextmanager
def installing(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    """Plug-ins in a folder for a while; then nobody remembers them."""
    place.mkdir(exist_ok=True)
    installer = Installer(place, monkeypatch)
    yield installer
    installer.close()
    forget()


def forget() -> None:
    """Look for plug-ins anew."""
    for function in (plugins.installed, folders.check_plugins, folders.component_names):
        function.cache_clear()
