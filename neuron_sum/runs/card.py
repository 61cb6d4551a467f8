"""The model card: Hugging Face's README.md with model-index, in the folder of the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from neuron_sum import files
from neuron_sum.recipes.schema import LoraMethod, PromptTuningMethod
from neuron_sum.runs.folder import RunFolder

CARD = """---
{{ card_data }}
---

# {{ name }}

{{ description }}

Trained by neuron-sum with the recipe `{{ name }}` ({{ method }}), base model `{{ base }}`.

- **Data**: {{ data }}. Licence of the data: {{ data_license }}. A model trained on it may be subject to that licence.
- **Prompt** (use exactly this text):

`````text
{{ template }}
`````

- **Limits**: the model summarizes short dialogues like those of its training data; it can name the wrong speaker or
  invent facts. The evaluation below counts speaker tags that are not in the dialogue.
{% if scores %}
## Evaluation on {{ evaluated_on }}

{{ protocol }}

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
    # A folder on this machine is meaningless to others, and not a valid hub id.
    hub_id = None if Path(str(recipe.model.name_or_path)).exists() else recipe.model.name_or_path
    data_license = results["data_license"]
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
        base_model=hub_id,
        model_name=recipe.name if eval_results else None,
        eval_results=eval_results or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=CARD,
        name=recipe.name,
        description=recipe.description,
        method=recipe.method.name,
        base=hub_id or "a local model",
        data=Path(results["data"]).name,
        data_license=data_license or "not stated",
        template=recipe.prompt.resolve().template,
        scores=scores,
        evaluated_on=evaluated_on,
        protocol=metrics["protocol"]["text"] if metrics else "",
        confidence=round(100 * recipe.evaluate.confidence),
    )
    files.write_text(run.weights / "README.md", str(card))
