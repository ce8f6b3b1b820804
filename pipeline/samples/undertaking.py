"""One indexing: what is indexed, where to, and how names and labels are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples.files import beside_class_folders
from unic_pipe.pipeline.samples.folders import ImageFolder, list_folders
from unic_pipe.pipeline.samples.labels import OLD_FOLDERS
from unic_pipe.pipeline.samples.left_out import LeftOut
from unic_pipe.pipeline.samples.places import Root
from unic_pipe.pipeline.samples.scan import Piece, TarPiece, folder_pieces
from unic_pipe.pipeline.samples.sources import Source
from unic_pipe.pipeline.storage import LocalStore, Store
from unic_pipe.schemas.config import DatasetConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.samples import DatasetManifest, Decoding, ImageNames

NEW_NAME = "Index the changed data as a new dataset: give it another name under samples.datasets."


@dataclass(frozen=True)
class Work:
    """What the steps of one indexing share."""

    place: Store
    scratch: LocalStore
    name: str
    config: DatasetConfig
    block_rows: int
    roots: tuple[Root, ...]
    source: Source
    label_source: str
    progress: Reporter
    stop: Stop | None
    decoding: Decoding
    rule: ImageNames
    """Of the index that is continued, else that of new ones."""
    recorded: frozenset[str] = frozenset()
    """Paths of the folders of the index that is continued."""

    @property
    def named(self) -> bool:
        """Whether class folders are numbered by place and known by name."""
        return self.label_source.partition("-")[0] == OLD_FOLDERS

    @cached_property
    def folders(self) -> list[ImageFolder]:
        """The source's folders; none for tars."""
        if self.source.layout == "tars":
            return []
        return list_folders(self.source, self.rule, by_place=self.named, recorded=self.recorded)

    def pieces(self) -> list[Piece]:
        """All that the source holds."""
        if self.source.layout == "tars":
            return self.tar_pieces(list(self.source.tars))
        return folder_pieces(self.folders, self.rule)

    def tar_pieces(self, shards: Sequence[str]) -> list[Piece]:
        """Some of its tars."""
        return [TarPiece(shard, self.source.tars[shard], self.config.label_field, self.rule) for shard in shards]

    def left_in_folders(self) -> LeftOut:
        """What its folders hold beside images."""
        left = LeftOut()
        for folder in self.folders:
            left.merge(folder.left, folder.key)
        if self.source.layout == "class-folders":
            assert self.source.folder is not None
            left.merge(beside_class_folders(self.source.folder, self.rule))
        return left

    def expect_same_settings(self, old: DatasetManifest) -> None:
        """Raises UserError: an index was made with settings that decide on its rows, and they are others now."""
        settings = (
            ("samples.block_rows", self.block_rows, old.block_rows),
            (f"samples.datasets.{self.name}.image", self.config.image, old.names.image),
        )
        for setting, now, indexed in settings:
            if now != indexed:
                raise UserError(
                    f"dataset {self.name}: {setting} is {now or 'not set'}; its index has {indexed or 'none'}.",
                    f"Set it back{f' to {indexed}' if indexed else ''}, or give the dataset another name under "
                    "samples.datasets.",
                )
