"""The One Billion Word benchmark, from TensorFlow Datasets."""

import contextlib

import tensorflow_datasets as tfds

# lm1b has a training and a test split. TFDS shuffles its sentences, so that the last of
# the 30.3 million training sentences are a sample of all. The test split is about as
# large.
VALIDATION_SENTENCES = 300_000
# The subword vocabulary is trained on the first sentences, 130 MB of text.
VOCABULARY_SENTENCES = 1_000_000


class Lm1b:
    """The sentences of lm1b, in three splits.

    Attributes:
        name: The name of the directory for their tokens.
        title: A description.
        skipped: Empty, because TFDS skips no sentence.

    Args:
        data_dir: Directory of prepared data sets; `None` for the default of TFDS.
        console: A `rich.console.Console`. TFDS shows its progress on terminals.
    """

    texts_at_once = 4096
    skipped = {}

    def __init__(self, data_dir, console):
        self._builder = tfds.builder("lm1b", data_dir=data_dir)
        self._is_watched = console is not None and console.is_terminal
        # name/config/version, as a directory's name.
        self.name = self._builder.info.full_name.replace("/", "-")
        self.title = f"lm1b {self._builder.version}"

    def batches(self):
        """Downloads and prepares the data set on first use.

        Returns:
            A dictionary from the names of the splits, and from `"vocabulary"` for the
            training data of a vocabulary, to sized iterables of lists of `bytes`.

        Raises:
            RuntimeError: it cannot be downloaded and prepared.
        """
        self._prepare()
        return {
            split: _Batches(self._builder, part, self.texts_at_once)
            for split, part in {
                "train": f"train[:-{VALIDATION_SENTENCES}]",
                "validation": f"train[-{VALIDATION_SENTENCES}:]",
                "test": "test",
                "vocabulary": f"train[:{VOCABULARY_SENTENCES}]",
            }.items()
        }

    def _prepare(self):
        if not self._is_watched:
            tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(None):
                self._builder.download_and_prepare()
        # Failures of the network, checksums and the disk have many classes.
        except Exception as error:
            raise RuntimeError(
                f"{self._builder.info.full_name} could not be downloaded and prepared: "
                f"{error}. Prepare it on a machine with a network (tfds build lm1b "
                "--data_dir=DIRECTORY), bring the directory here and give it as "
                'data_dir; or use the text "stdlib", which needs no network.'
            ) from error


class _Batches:
    """The texts of a part of a TFDS data set, in order, as lists of `bytes`."""

    def __init__(self, builder, part, texts_at_once):
        self._batches = builder.as_dataset(split=part).batch(texts_at_once)

    def __iter__(self):
        for batch in self._batches.as_numpy_iterator():
            yield batch["text"].tolist()

    def __len__(self):
        return len(self._batches)
