"""Published containers that neuron-sum uses unchanged, by their name in `package --container` and `deploy --image`.

matrix.ENDED_CONTAINERS has those that are no longer maintained.
"""

from neuron_sum.platform.matrix import RegistryImage

VLLM = "hf-vllm"
"""Hugging Face's image with vLLM and the plugin of optimum-neuron."""

ENVIRONMENT_FILE = "container.json"
"""The first file of an archive for such a container: its name in `container`, its variables in `environment`."""

CONTAINERS = {
    VLLM: RegistryImage(
        repository="huggingface-vllm-inference-neuronx",
        tag="0.11.0-optimum0.4.5-neuronx-py310-sdk2.26.1-ubuntu22.04",
        stage="serve",
        versions={"python": "3.10", "neuron-sdk": "2.26.1", "vllm": "0.11.0", "optimum-neuron": "0.4.5"},
        source="aws/deep-learning-containers ddd0cc7d, docs/src/data/huggingface-vllm-inference-neuronx/"
        "0.11-neuronx-sdk2.26.1.yml; Hugging Face's list of AWS containers (SageMaker documentation) names the same "
        "tag; optimum-neuron 213224e6 (2026-08-19), docs/source/containers.mdx, still has 0.4.4",
        checked="2026-11-29",
    ),
}
