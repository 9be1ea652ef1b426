"""Feature networks: what an image shows, as a vector, and as a class; for distances and for accuracy.

All weights come from local safetensors; nothing is downloaded. A distance in the features of one of these bears the
network's name: only Inception-v3's is called FID.
"""

from __future__ import annotations

from latentsb.features.base import FEATURES, Classifier, FeatureNetwork, Features
from latentsb.features.cifar import CifarResNet, ResNet
from latentsb.features.digits import LeNet, MnistLeNet
from latentsb.features.inception import Inception, InceptionV3
from latentsb.features.mobilenet import ImageNetMobileNet, MobileNetV2
from latentsb.features.timm import Timm, TimmNetwork

__all__ = [
    "FEATURES",
    "CifarResNet",
    "Classifier",
    "FeatureNetwork",
    "Features",
    "ImageNetMobileNet",
    "Inception",
    "InceptionV3",
    "LeNet",
    "MnistLeNet",
    "MobileNetV2",
    "ResNet",
    "Timm",
    "TimmNetwork",
]
