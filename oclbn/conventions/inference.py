"""PURE: frameworks that evaluate what others trained, and older ones, whose training modules do not follow."""

from __future__ import annotations

from oclbn.conventions.convention import Convention, Names

CAFFE = Convention(
    "caffe",
    "Caffe",
    "source of BVLC/caffe 9b89154",
    Names("scale[0]", "scale[1]", "batch_norm[0] / batch_norm[2]", "batch_norm[1] / batch_norm[2]"),
    epsilon=1e-5,
    momentum=0.999,
    momentum_of="old",
    estimator="sample",
    first_batch="debiased",
    initial_variance=0.0,
    zero_epsilon=None,
    notes="momentum is moving_average_fraction. The first two blobs hold sums, and the third the sum of weights that "
    "they are divided by. Scale and bias are a layer of their own. One value per channel counts as of variance 0.",
)
DARKNET = Convention(
    "darknet",
    "Darknet",
    "AlexeyAB/darknet 59596d7, and the source of pjreddie/darknet f6afaab for CUDA",
    Names("scales", "biases", "rolling_mean", "rolling_variance"),
    epsilon=1e-5,
    momentum=0.99,
    momentum_of="old",
    estimator="sample",
    initial_variance=0.0,
    zero_epsilon=None,
    one_value="nan",
    normalises_by="sample",
    notes="Epsilon and momentum are constants of the code; AlexeyAB's has a momentum of 0.9 on the processor. With "
    "cuDNN a batch is normalised by its population variance. Files hold biases, scales, means, variances.",
)
DARKNET_CPU = Convention(
    "darknet_cpu",
    "Darknet, pjreddie's for processors",
    "pjreddie/darknet f6afaab",
    Names("scales", "biases", "rolling_mean", "rolling_variance"),
    epsilon=1e-6,
    momentum=0.99,
    momentum_of="old",
    estimator="sample",
    initial_variance=0.0,
    epsilon_in="deviation",
    zero_epsilon=None,
    one_value="nan",
    normalises_by="sample",
    notes="Where the same program merges layers it takes DARKNET's epsilon.",
)
OPENCV_DARKNET = Convention(
    "opencv_darknet",
    "OpenCV reading Darknet",
    "opencv 4.14.0",
    Names("scales", "biases", "rolling_mean", "rolling_variance"),
    epsilon=1e-6,
    momentum=None,
    momentum_of=None,
    estimator=None,
    zero_epsilon=None,
    one_value=None,
)
NCNN = Convention(
    "ncnn",
    "ncnn",
    "ncnn 1.0.20261020",
    Names("slope", "bias", "mean", "var"),
    epsilon=0.0,
    momentum=None,
    momentum_of=None,
    estimator=None,
    zero_epsilon="runs",
    one_value=None,
    notes="Files hold slope, mean, var, bias. A variance and epsilon of exactly 0 together count as 1e-8.",
)
OPENVINO = Convention(
    "openvino",
    "OpenVINO",
    "openvino 2026.4.1",
    Names("gamma", "beta", "mean", "variance"),
    epsilon=1e-5,
    momentum=None,
    momentum_of=None,
    estimator=None,
    zero_epsilon=None,
    one_value=None,
    notes="Epsilon has no default. Plugins fold the layer into x s + t in float32, which loses digits where a mean "
    "is far larger than the standard deviation.",
)
COREML = Convention(
    "coreml",
    "Core ML",
    "coremltools 9.0",
    Names("gamma", "beta", "mean", "variance"),
    epsilon=1e-5,
    momentum=None,
    momentum_of=None,
    estimator=None,
    least_epsilon=2.0**-24,
    zero_epsilon=None,
    one_value=None,
    notes="In float16, which is its default: 2**-24 is the least value of variance and epsilon. Where a constant is "
    "beyond 65504 the whole operation is float32.",
)
MATCONVNET = Convention(
    "matconvnet",
    "MatConvNet",
    "source of vlfeat/matconvnet 1e5ae7b",
    Names("filters", "biases", "moments(:, 1)", "moments(:, 2)"),
    epsilon=1e-5,
    momentum=0.1,
    momentum_of="new",
    estimator="population",
    initial_variance=0.0,
    epsilon_in="stored",
    zero_epsilon=None,
    one_value=None,
    axis=2,
    notes="What is averaged and stored is the standard deviation with epsilon in it, so that training goes on "
    "otherwise than here. vl_nnbnorm alone has an epsilon of 1e-4; momentum is the learning rate of the moments.",
)
