"""The images that `plan` measures stand for all, however few fit its time."""

from collections import Counter

from indexing import index

from unic_pipe.stages.plan.timing import sample


def test_every_class_and_every_size_has_its_share(tmp_path, picture):
    for label in ("ant", "bee", "cat"):
        (tmp_path / "d" / label).mkdir(parents=True)
        for number in range(20):
            data = picture(number) + bytes(100 * number)  # what follows a picture's end is not read
            (tmp_path / "d" / label / f"{label}{number}.png").write_bytes(data)
    dataset = index(tmp_path, "d", "d")
    sizes, labels = dataset.sizes(), dataset.labels()
    place = {row: number for number, row in enumerate(dataset.rows().tolist())}
    for count in (6, 15, 30):
        chosen = [place[row] for row in sample(dataset, count)]
        assert len(set(chosen)) == count
        assert set(Counter(labels[chosen].tolist()).values()) <= {count // 3 - 1, count // 3, count // 3 + 1}
        assert abs(sizes[chosen].mean() - sizes.mean()) < 0.12 * sizes.mean()
    assert sample(dataset, 30)[:6] == sample(dataset, 6)
    for count in (60, 500):
        assert sorted(sample(dataset, count)) == dataset.rows().tolist()
