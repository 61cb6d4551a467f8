"""The model card: Hugging Face's README.md with model-index, in the folder of the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from neuron_sum import files
from neuron_sum.data.examples import count_of
from neuron_sum.recipes.schema import LoraMethod, ModelConfig, PromptTuningMethod
from neuron_sum.runs.folder import RunFolder

CARD = """---
{{ card_data }}
---

# {{ name }}

{{ description }}

Trained by neuron-sum with the recipe `{{ name }}` ({{ method }}). Base model: {{ base }}.

- **Data**: {{ data }}. Licence of the data: {{ data_license }}. A model trained on it may be subject to that licence.
- **Prompt** (use exactly this text{% if is_chat %}, with `add_special_tokens=False`{% endif %}):

`````text
{{ template }}
`````

- **Limits**: the model summarizes short dialogues like those of its training data; it can name the wrong speaker or
  invent facts. The evaluation below counts speaker tags that are not in the dialogue.
{% if scores %}
## Evaluation on {{ evaluated_on }}

{{ sample }}. {{ protocol }}

| | value | {{ confidence }} % interval |
|---|---|---|
{% for name, score in scores.items() -%}
| {{ name }} | {{ "%.2f"|format(score.value) }} | {{ "%.2f"|format(score.low) }} – {{ "%.2f"|format(score.high) }} |
{% endfor %}
{% endif %}"""

SPDX = {
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
    "CC BY-NC-ND 4.0": "cc-by-nc-nd-4.0",
    "CC BY 4.0": "cc-by-4.0",
    "Apache-2.0": "apache-2.0",
}


def write_model_card(
    run: RunFolder, results: Mapping[str, Any], metrics: Mapping[str, Any] | None = None, evaluated_on: str = ""
) -> None:
    """Writes README.md into the folder of the weights.

    Args:
        run: The finished run.
        results: The contents of all_results.json, with the training data and its licence.
        metrics: The results of `evaluate`, in the format of metrics.json.
        evaluated_on: The name of the evaluation data.
    """
    recipe = run.recipe
    data_license, converted, prompt = results["data_license"], results.get("converted_from"), recipe.prompt.resolve()
    scores = metrics["scores"] if metrics else {}
    eval_results = [
        EvalResult(
            task_type="summarization",
            dataset_type=evaluated_on.lower().replace(" ", "-"),
            dataset_name=evaluated_on,
            dataset_split=metrics["split"],
            metric_type=name.lower(),
            metric_name=name,
            metric_value=round(score["value"], 2),
        )
        for name, score in scores.items()
        if metrics is not None
    ]
    data = ModelCardData(
        license=SPDX.get(str(data_license), "other"),
        library_name="peft" if isinstance(recipe.method, LoraMethod | PromptTuningMethod) else "transformers",
        pipeline_tag="summarization",
        tags=["dialogue-summarization", "neuron-sum"],
        base_model=_hub_id(recipe.model) or (converted or {}).get("base_model"),
        model_name=recipe.name if eval_results else None,
        eval_results=eval_results or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=CARD,
        name=recipe.name,
        description=recipe.description,
        method=recipe.method.name,
        base=describe_base(recipe.model, converted),
        data=_describe_data(results),
        data_license=data_license or "not stated",
        template=prompt.template,
        is_chat=prompt.is_chat,
        scores=scores,
        evaluated_on=evaluated_on,
        sample=f"{count_of(metrics['examples'], metrics.get('available'))} {metrics['split']} dialogues"
        if metrics
        else "",
        protocol=metrics["protocol"]["text"] if metrics else "",
        confidence=round(100 * recipe.evaluate.confidence),
    )
    files.write_text(run.weights / "README.md", str(card))


def describe_base(model: ModelConfig, converted: Mapping[str, Any] | None = None) -> str:
    """The name of a base model for readers on other machines, to whom the paths of this one mean nothing.

    Args:
        model: The recipe's model section.
        converted: The GGUF file that it was converted from (see models/gguf.py), if it was.
    """
    name = model.name_or_path
    if name is None:
        return f"random weights (seed {model.seed})"
    if (hub_id := _hub_id(model)) is not None:
        return f"`{hub_id}`" + (f" at revision `{model.revision}`" if model.revision else "")
    if converted is not None:
        original = f"`{converted['base_model']}`, from " if converted["base_model"] else ""
        license_ = f", licence {converted['license']}" if converted.get("license") else ""
        made = f"a GGUF file with {converted['quantization']}{license_}, dequantized to fp32"
        return f"{original}`{converted['file']}`, {made}"
    return f"`{Path(name).name}`, a folder" if Path(name).is_absolute() else f"`{name}`"


def _hub_id(model: ModelConfig) -> str | None:
    """The base model's id on a hub; None for a folder, a file or another source, which a hub's card cannot name.

    A path of a recipe is absolute after loading, and therefore differs from an id, whether or not it still exists.
    """
    try:
        validate_repo_id(str(model.name_or_path))
    except HFValidationError:
        return None
    return model.name_or_path


def _describe_data(results: Mapping[str, Any]) -> str:
    name, train = Path(results["data"]).name, results.get("examples", {}).get("train")
    return name if train is None else f"{name}, {count_of(train['used'], train['available'])} training examples"
