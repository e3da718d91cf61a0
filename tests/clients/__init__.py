"""Programs from npm that nobody here wrote: other people's EventSources, and an upstream."""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support import missing

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".cache"


def node_modules(home: Path = HERE) -> Path:
    """Return the installed packages; asks the npm registry once for each package.json."""
    if not (shutil.which("node") and shutil.which("npm")):
        missing("node and npm")
    wanted = home / "package.json"
    if (home / "node_modules").is_dir():
        return home / "node_modules"
    kept = CACHE / f"clients-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]}"
    if not kept.is_dir():
        _install(wanted, kept)
    return kept / "node_modules"


def beside(modules: Path, folder: Path, home: Path = HERE) -> Path:
    """Return a folder with the scripts of `home`, beside the packages that they import."""
    for script in [*home.glob("*.mjs"), home / "package.json"]:
        shutil.copy(script, folder)
    (folder / "node_modules").symlink_to(modules)
    return folder


def _install(wanted: Path, kept: Path) -> None:
    """Install beside `kept`, then rename: what is there under that name is whole."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        half = Path(folder) / "clients"
        half.mkdir()
        shutil.copy(wanted, half)
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
        try:
            subprocess.run(command, cwd=half, check=True, capture_output=True, timeout=45)
        except (subprocess.SubprocessError, OSError) as error:
            missing(f"the packages of {wanted.name} from npm ({error})")
        if not kept.is_dir():  # Another run of the tests may have been quicker.
            half.rename(kept)
