import pytest
import torch
from torch import Tensor

from lambda24.common.data.dataset import ImageDataset, load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.sampling.evaluation.classifier import label_accuracy, train_classifier


def all_images(dataset: ImageDataset) -> Tensor:
    return dataset.images_uint8(range(len(dataset)))


def test_digits_are_recognised_and_shuffled_labels_are_not() -> None:
    config = DataConfig(path="digits", image_size=16)
    train, held_out = load_dataset(config, train=True), load_dataset(config, train=False)
    classifier = train_classifier(all_images(train), train.labels)
    images = all_images(held_out)
    assert label_accuracy(classifier, images, held_out.labels) >= 0.98
    wrong = (held_out.labels + 1) % 10
    assert label_accuracy(classifier, images, wrong) <= 0.02
    assert classifier.predict(images).dtype == torch.int64


def test_images_may_come_in_another_size_than_trained_on() -> None:
    config = DataConfig(path="digits", image_size=32)
    train = load_dataset(config, train=True)
    images = all_images(train)
    classifier = train_classifier(images[:500], train.labels[:500])
    assert label_accuracy(classifier, images[500:800], train.labels[500:800]) > 0.93


def test_bad_input_is_refused() -> None:
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"float32"):
        train_classifier(images.float(), labels)
    with pytest.raises(ValueError, match="4 and 3"):
        train_classifier(images, labels[:3])
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        train_classifier(images, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="0 and 0"):
        label_accuracy(
            train_classifier(images + labels[:, None, None, None].byte(), labels),
            images[:0],
            labels[:0],
        )
