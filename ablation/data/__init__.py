"""Data sets: sources of images, training and validation splits, batch loaders."""

from ablation.data.digits import Digits
from ablation.data.image_folder import ImageFolder
from ablation.data.images import (
    Extent,
    ImageSet,
    OwnImages,
    Source,
    check_labels,
    label_problems,
    sent,
    to_float,
)
from ablation.data.loader import (
    Augment,
    DeviceLoader,
    check_batch_size,
    check_shares,
    crop_flip,
)
from ablation.data.parquet import Parquet
from ablation.data.split import Split, check_sizes, encode_split, load_split, stratified_split
from ablation.data.statistics import statistics
from ablation.data.tiny_imagenet import TinyImageNet
from ablation.data.vision import Cifar10, Cifar100, Mnist, Svhn

__all__ = [
    "Augment",
    "Cifar10",
    "Cifar100",
    "DeviceLoader",
    "Digits",
    "Extent",
    "ImageFolder",
    "ImageSet",
    "Mnist",
    "OwnImages",
    "Parquet",
    "Source",
    "Split",
    "Svhn",
    "TinyImageNet",
    "check_batch_size",
    "check_labels",
    "check_shares",
    "check_sizes",
    "crop_flip",
    "encode_split",
    "label_problems",
    "load_split",
    "sent",
    "statistics",
    "stratified_split",
    "to_float",
]
