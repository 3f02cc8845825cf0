"""The table of docs/deployment.md: what check.py forecasts for the paper's models.

    PYTHONPATH=. python tests/memory_table.py
"""
from transformers import Qwen2Config

from check import GIB, forecast
from config import Config

QWEN = {  # hidden_size, intermediate_size, layers, heads, key-value heads
    "0.5B": (896, 4864, 24, 14, 2), "1.5B": (1536, 8960, 28, 12, 2), "3B": (2048, 11008, 36, 16, 2),
}


def qwen_shape(size):
    """Configuration of a Qwen2.5-Instruct model, from its published shape."""
    hidden, inner, layers, heads, kv_heads = QWEN[size]
    return Qwen2Config(vocab_size=151_936, hidden_size=hidden, intermediate_size=inner,
                       num_hidden_layers=layers, num_attention_heads=heads,
                       num_key_value_heads=kv_heads, tie_word_embeddings=True)


def memory_table(config):
    """Markdown: peak GiB per GPU of the paper's models on 1, 2, 4 and 8 GPUs,
    with the parts on 1."""
    columns = {size: qwen_shape(size) for size in QWEN}
    first = {size: forecast(shape, config, 1) for size, shape in columns.items()}
    lines = ["| GiB per GPU | " + " | ".join(f"Qwen2.5-{size}" for size in QWEN) + " |",
             "|---|---|---|---|"]
    lines += [f"| {part} (1 GPU) | "
              + " | ".join(f"{first[size][part] / GIB:.1f}" for size in QWEN) + " |"
              for part in list(first["0.5B"])[:-1]]
    for world in (1, 2, 4, 8):
        peaks = [forecast(shape, config, world)["peak"] for shape in columns.values()]
        lines.append(f"| **peak, {world} GPU** | "
                     + " | ".join(f"{peak / GIB:.1f}" for peak in peaks) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(memory_table(Config()))
