"""`import` and `export`: official checkpoints in, and our students out in the layout of the official code."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unic_pipe.pipeline.encoders import export_student, load_encoder, resolve_encoder
from unic_pipe.pipeline.encoders.conversions import OFFICIAL
from unic_pipe.pipeline.encoders.encoder import Encoder
from unic_pipe.pipeline.encoders.official import CONVERSION, MEAN, STD, OfficialCheckpoint, read_official
from unic_pipe.pipeline.encoders.official_export import (
    architecture_name,
    encoder_to_official,
    ladder_to_bytes,
    named_ladder,
    official_names,
    read_folder,
)
from unic_pipe.pipeline.encoders.official_names import LADDER_FILE, TEACHERS
from unic_pipe.pipeline.storage import LocalStore, sha256
from unic_pipe.pipeline.students.ladder import rungs
from unic_pipe.pipeline.workspace.documents import FinishedStudent
from unic_pipe.pipeline.workspace.ladders import ladder_state, last_checkpoint, statistics_of
from unic_pipe.pipeline.workspace.leftovers import MANIFEST
from unic_pipe.pipeline.workspace.seals import IMPORTED
from unic_pipe.schemas.config import EncoderConfig, LadderConfig, Scalar
from unic_pipe.schemas.errors import UserError, did_you_mean
from unic_pipe.schemas.heads import LADDER
from unic_pipe.schemas.losses import TOKENS
from unic_pipe.schemas.students import ImportManifest

LAYOUTS = (CONVERSION, *(layout for layout in OFFICIAL if layout in TEACHERS))
"""Official layouts that `import` reads. Only the first is also written; teachers' files are import-only."""


@dataclass(frozen=True)
class Exported:
    """What was written, and what the official code cannot do with it."""

    path: Path
    remarks: tuple[str, ...]


def import_encoder(
    workdir: Path,
    weights_dir: Path,
    file: Path,
    name: str,
    layout: str = CONVERSION,
    model_args: dict[str, Scalar] | None = None,
    image_size: int | None = None,
) -> Path:
    """Write an official file as `encoders/NAME`, a folder that is an encoder: `checkpoint:encoders/NAME`.

    A UNIC checkpoint keeps its ladder and statistics there, so that `export` gives it back tensor by tensor.
    Raises UserError: no such file or layout, a file that does not fit, or a folder of that name with other content.
    """
    if layout not in LAYOUTS:
        raise UserError(f"No layout is named {layout!r}{did_you_mean(layout, LAYOUTS)}")
    if not file.is_file():
        raise UserError(f"{file}: no such file.", "Give the path of an official checkpoint.")
    files: dict[str, bytes] = {}
    if layout == CONVERSION:
        files[LADDER_FILE] = ladder_to_bytes(read_official(file))
    path = str(file.absolute())
    choice, weights = (f"checkpoint:{path}", None) if layout == CONVERSION else (layout, path)
    config = EncoderConfig(encoder=choice, weights=weights, model_args=model_args or {}, image_size=image_size)
    encoder = load_encoder(resolve_encoder(name, config, weights_dir, None))
    folder = workdir / IMPORTED / name
    kept = _Kept(files)
    definition = encoder.definition
    export_student(
        kept,
        encoder.model,
        architecture=definition.architecture,
        model_args={**definition.model_args, "img_size": definition.image_size},
        image_size=definition.image_size,
        mean=definition.mean,
        std=definition.std,
    )
    manifest = ImportManifest(files={key: sha256(data) for key, data in sorted(kept.files.items())})
    _write_once(folder, kept.files | {MANIFEST: manifest.to_bytes()})
    return folder


def export_official(student: FinishedStudent, file: Path, overwrite: bool = False) -> Exported:
    """Write a finished student, with its ladder and statistics, as an official UNIC checkpoint.

    The encoder is the exported one, the ladder that of the last checkpoint. `overwrite`: whatever file is there.

    Raises:
        UserError: the official encoder cannot express the student's, or the file exists.
        StageError: the last checkpoint is gone or damaged.
    """
    definition = student.manifest.definition
    if definition.config.ladder.kind != LADDER:
        raise UserError(
            f"Student {student.name} has heads of kind {definition.config.ladder.kind}, and the official code knows ladders.",
            f"Its export is for timm, with its heads beside it: {student.folder / 'export'}",
        )
    encoder = load_encoder(str(student.folder / "export"))
    model: Any = encoder.model
    teachers = [teacher.name for teacher in definition.teachers]
    names = official_names(teachers)
    config = definition.config
    blocks = rungs(config.ladder, len(model.blocks)).blocks
    state = last_checkpoint(student)
    checkpoint = OfficialCheckpoint(
        encoder=encoder_to_official(model),
        ladder=named_ladder(ladder_state(state), names, blocks, config.loss),
        statistics=statistics_of(student.manifest, student.folder, names, state.get("running", {})),
        epoch=config.optimizer.epochs,
        args=_arguments(encoder, sorted(names.values()), config.ladder, blocks, config.drop_path),
    )
    _write(file, checkpoint.to_bytes(), overwrite)
    remarks = []
    if checkpoint.args["arch"] == "custom":
        remarks.append("the official code has no name for this architecture (it knows vit_tiny to vit_large)")
    unknown = [name for name in names.values() if name not in TEACHERS.values()]
    if unknown:
        remarks.append(f"its ladder needs entries for {', '.join(unknown)} in the official teachers/config.py")
    if len(config.loss.trained) < len(TOKENS) or any(t.cls_dim != t.patch_dim for t in definition.teachers):
        remarks.append("its ladder is not one of the official code's, which has equal projectors for cls and patch")
    if (encoder.definition.mean, encoder.definition.std) != (MEAN, STD):
        remarks.append("the official code normalises images with ImageNet's mean and std; this student has others")
    return Exported(file, tuple(remarks))


def export_imported(folder: Path, file: Path, overwrite: bool = False) -> Exported:
    """Write an imported UNIC checkpoint back: the same tensors under the same names.
    Raises UserError: the folder holds no imported UNIC checkpoint, or the file exists."""
    _write(file, read_folder(folder, load_encoder(str(folder)).model).to_bytes(), overwrite)
    return Exported(file, ())


def _arguments(
    encoder: Encoder, teachers: Sequence[str], ladder: LadderConfig, blocks: Sequence[int], drop_path: float
) -> dict[str, Any]:
    """The arguments from which the official code builds encoder and ladder, and those that only this program reads."""
    model: Any = encoder.model
    projectors = {"hidden_dim": ladder.hidden, "last_hidden_dim": ladder.last_hidden, "which_blocks": list(blocks)}
    return {
        "arch": architecture_name(model),
        "patch_size": int(model.patch_embed.patch_size[0]),
        "image_size": encoder.definition.image_size,
        "drop_path_rate": drop_path,
        "teachers": list(teachers),
        "lp_args": repr(projectors),
        "num_heads": int(model.blocks[0].attn.num_heads),
        "num_register_tokens": int(model.num_prefix_tokens) - 1,
        "image_mean": list(encoder.definition.mean),
        "image_std": list(encoder.definition.std),
    }


class _Kept(LocalStore):
    """A store that keeps what is put into it, until all of it is known."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(Path())
        self.files = files

    def put(self, key: str, data: bytes) -> None:
        self.files[key] = data


def _write_once(folder: Path, files: dict[str, bytes]) -> None:
    """Write a folder's files; equal ones may be there already, others never are replaced."""
    store = LocalStore(folder)
    for key, data in files.items():
        if store.size(key) is not None and store.get(key) != data:
            raise UserError(f"{folder} exists already and holds another encoder.", "Choose another NAME.")
    # config.json last: the folder is an encoder when it is there.
    for key in sorted(files, key=lambda key: key == "config.json"):
        store.create(key, files[key])


def _write(file: Path, data: bytes, overwrite: bool) -> None:
    store = LocalStore(file.absolute().parent)
    if overwrite and file.is_file():
        store.put(file.name, data)
    elif not store.create(file.name, data) and (file.is_dir() or store.get(file.name) != data):
        raise UserError(f"{file} exists already.", "Choose another name, or add --overwrite.")
    with suppress(OSError):
        store.path(".tmp").rmdir()  # the folder is the user's
