"""Generate `client/adjourn/v1` from `proto/adjourn/v1`; with `--check`, only say whether it is up to date.

The rules of protovalidate are options on fields. protoc would make the generated modules import protovalidate's
definitions, and with them the light client would need protovalidate. So the import is taken out of the descriptors
between parsing and generating; the rules stay in them, where the service's validator reads them.
"""

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import status_pb2

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
TARGET = ROOT / "client"
STUB_PLUGINS = ["protoc-gen-mypy", "protoc-gen-mypy_grpc"]
RULES = "buf/validate/validate.proto"
INCLUDES = [PROTO, Path(grpc_tools.__file__).parent / "_proto", Path(status_pb2.__file__).parents[2]]


def protoc(*arguments: str) -> None:
    """Run the protoc of grpcio-tools; raises CalledProcessError with its message on stderr."""
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True)


def image(path: Path) -> None:
    """Write a self-contained descriptor set of the API to `path`: the input of `buf lint` and `buf breaking`."""
    sources = sorted(str(p.relative_to(PROTO)) for p in (PROTO / "adjourn").rglob("*.proto"))
    includes = [f"-I{include}" for include in INCLUDES]
    protoc(*includes, "--include_imports", "--include_source_info", f"--descriptor_set_out={path}", *sources)


def generate(target: Path) -> None:
    """Write the generated modules and stubs below `target`."""
    with tempfile.TemporaryDirectory() as scratch:
        full, stripped = Path(scratch, "full.binpb"), Path(scratch, "stripped.binpb")
        image(full)
        descriptors = FileDescriptorSet.FromString(full.read_bytes())
        ours = [file for file in descriptors.file if file.name.startswith("adjourn/")]
        for file in ours:
            file.dependency[:] = [name for name in file.dependency if name != RULES]
            file.ClearField("public_dependency")
        kept = [file for file in descriptors.file if file.name != RULES]
        stripped.write_bytes(FileDescriptorSet(file=kept).SerializeToString())
        source = f"--descriptor_set_in={stripped}"
        stubs = [f"--plugin={name}={Path(sys.executable).parent / name}" for name in STUB_PLUGINS]
        protoc(source, *stubs, f"--python_out={target}", f"--mypy_out=quiet:{target}", *(file.name for file in ours))
        services = [file.name for file in ours if file.service]
        protoc(source, *stubs, f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}", *services)
    docstring = '"""The wire API, generated from proto/adjourn/v1 by `make proto`."""\n'
    (target / "adjourn/v1/__init__.py").write_text(docstring)


def main() -> int:
    """Generate, or check; returns the exit status."""
    if sys.argv[1:2] == ["--image"]:
        image(Path(sys.argv[2]))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = Path(scratch, "adjourn/v1"), TARGET / "adjourn/v1"
        names = {p.name for p in fresh.iterdir()} | {p.name for p in committed.glob("*.py*")}
        _, differ, missing = filecmp.cmpfiles(fresh, committed, sorted(names), shallow=False)
        if sys.argv[1:] == ["--check"]:
            for name in differ + missing:
                print(f"client/adjourn/v1/{name} is not what proto/ generates; run 'make proto'", file=sys.stderr)
            return 1 if differ or missing else 0
        for name in missing + differ:
            (committed / name).unlink(missing_ok=True)
            if (fresh / name).exists():
                shutil.copy(fresh / name, committed / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
