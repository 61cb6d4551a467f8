"""The model card: Hugging Face's README.md with model-index, beside the weights it speaks of."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from neuron_sum import files
from neuron_sum.recipe import LoraMethod, PromptTuningMethod
from neuron_sum.run_folder import RunFolder

CARD = """---
{{ card_data }}
---

# {{ name }}

{{ description }}

Made by neuron-sum from the recipe `{{ name }}` ({{ method }}), base model `{{ base }}`.

- **Data**: {{ data }}. Licence of the data: {{ data_license }}. A model trained on it may be bound by that licence.
- **Prompt** (give the model exactly this):

```text
{{ template }}
```

- **Limits**: it summarizes short dialogues like those it was trained on; it can name the wrong speaker or state
  what was not said. The evaluation below counts speaker tags that are not in the dialogue.
{% if scores %}
## Evaluation

{{ protocol }}

| | value | {{ confidence }} % interval |
|---|---|---|
{% for name, score in scores.items() -%}
| {{ name }} | {{ "%.2f"|format(score.value) }} | {{ "%.2f"|format(score.low) }} – {{ "%.2f"|format(score.high) }} |
{% endfor %}
{% endif %}"""

SPDX = {"CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0", "CC BY-NC-ND 4.0": "cc-by-nc-nd-4.0", "CC BY 4.0": "cc-by-4.0",
        "Apache-2.0": "apache-2.0"}  # fmt: skip


def write_model_card(run: RunFolder, data_license: str | None, metrics: Mapping[str, Any] | None = None) -> None:
    """Writes README.md into the weights' folder.

    Args:
        run: The finished run.
        data_license: Told in the card, and its identifier in the metadata where it has one.
        metrics: What `evaluate` measured, in the form of metrics.json.
    """
    recipe = run.recipe
    base = recipe.model.name_or_path or "random weights (see base/)"
    data_name = {"sample": "neuron-sum sample", "dialogsum": "DialogSum", "samsum": "SAMSum"}.get(
        recipe.data.source, str(recipe.data.path).rpartition("/")[2]
    )
    scores = metrics["scores"] if metrics else {}
    results = [
        EvalResult(
            task_type="summarization",
            dataset_type=data_name.lower().replace(" ", "-"),
            dataset_name=data_name,
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
        base_model=recipe.model.name_or_path,
        model_name=recipe.name if results else None,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=CARD,
        name=recipe.name,
        description=recipe.description,
        method=recipe.method.name,
        base=base,
        data=data_name,
        data_license=data_license or "not stated",
        template=recipe.prompt.resolve().template,
        scores=scores,
        protocol=metrics["protocol"]["text"] if metrics else "",
        confidence=round(100 * recipe.evaluate.confidence),
    )
    files.write_text(run.weights / "README.md", str(card))
