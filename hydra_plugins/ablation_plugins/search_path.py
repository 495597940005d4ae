"""The options of plug-ins among ours: a thin shell, because Hydra loads it at every start."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class PluginOptions(SearchPathPlugin):
    """Adds the folders of ``ablation.plugins`` behind ours; other applications get nothing."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append them, where the main folder is ours."""
        from ablation.config.folders import conf_dir
        from ablation.plugins import folders

        paths = [str(entry.path).removeprefix("file://") for entry in search_path.get_path()]
        if str(conf_dir()) in paths:
            for folder in folders("conf"):
                search_path.append("ablation-plugin", f"file://{folder}")
