"""How good synthetic images are, and pictures of them: arrays in, numbers and files out.

What is computed from private images here is covered by no ε: such scores and pictures are for the data owner only.
"""

from dpdm.evaluation.by_class import ByClass as ByClass
from dpdm.evaluation.by_class import by_class as by_class
from dpdm.evaluation.by_class import confusion_of as confusion_of
from dpdm.evaluation.by_class import places_by_name as places_by_name
from dpdm.evaluation.charts import roc_chart as roc_chart
from dpdm.evaluation.charts import templates as templates
from dpdm.evaluation.classifiers import CLASSIFIERS as CLASSIFIERS
from dpdm.evaluation.classifiers import CNN as CNN
from dpdm.evaluation.classifiers import COLOUR_CLASSIFIERS as COLOUR_CLASSIFIERS
from dpdm.evaluation.classifiers import MLP as MLP
from dpdm.evaluation.classifiers import Classifier as Classifier
from dpdm.evaluation.classifiers import LogReg as LogReg
from dpdm.evaluation.classifiers import ResidualNet as ResidualNet
from dpdm.evaluation.distances import density_coverage as density_coverage
from dpdm.evaluation.distances import frechet_distance as frechet_distance
from dpdm.evaluation.distances import inception_score as inception_score
from dpdm.evaluation.distances import kernel_distance as kernel_distance
from dpdm.evaluation.distances import nearest as nearest
from dpdm.evaluation.distances import precision_recall as precision_recall
from dpdm.evaluation.features import ClassifierFeatures as ClassifierFeatures
from dpdm.evaluation.features import EfficientNetLite0 as EfficientNetLite0
from dpdm.evaluation.features import Features as Features
from dpdm.evaluation.features import Pixels as Pixels
from dpdm.evaluation.features import RandomConvNet as RandomConvNet
from dpdm.evaluation.features import TorchScriptFeatures as TorchScriptFeatures
from dpdm.evaluation.features import features_by_name as features_by_name
from dpdm.evaluation.features import image_features as image_features
from dpdm.evaluation.fidelity import Fidelity as Fidelity
from dpdm.evaluation.fidelity import Score as Score
from dpdm.evaluation.fidelity import compare_features as compare_features
from dpdm.evaluation.fidelity import draw_equally as draw_equally
from dpdm.evaluation.fidelity import evaluate_fidelity as evaluate_fidelity
from dpdm.evaluation.fidelity import refuse_same_images as refuse_same_images
from dpdm.evaluation.fidelity import require_comparable as require_comparable
from dpdm.evaluation.picture import image_grid as image_grid
from dpdm.evaluation.picture import one_row_per_class as one_row_per_class
from dpdm.evaluation.picture import save_grid as save_grid
from dpdm.evaluation.picture import side_by_side as side_by_side
from dpdm.evaluation.protocol import DPIMAGEBENCH as DPIMAGEBENCH
from dpdm.evaluation.protocol import PROTOCOLS as PROTOCOLS
from dpdm.evaluation.protocol import QUICK as QUICK
from dpdm.evaluation.protocol import UtilityProtocol as UtilityProtocol
from dpdm.evaluation.random_networks import RandomConvNets as RandomConvNets
from dpdm.evaluation.scorecard import Judge as Judge
from dpdm.evaluation.scorecard import Labelled as Labelled
from dpdm.evaluation.scorecard import Scorecard as Scorecard
from dpdm.evaluation.scorecard import percent as percent
from dpdm.evaluation.utility import UtilityScore as UtilityScore
from dpdm.evaluation.utility import evaluate_utility as evaluate_utility
from dpdm.evaluation.utility import require_testable as require_testable
from dpdm.evaluation.utility import train_classifier as train_classifier
from dpdm.evaluation.wide import WideResidualNet as WideResidualNet
from dpdm.types import as_images as as_images
