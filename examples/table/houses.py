"""Write houses.csv: 600 made-up houses with numbers, categories and gaps.

python examples/table/houses.py
"""

from pathlib import Path

import numpy as np
import pandas as pd


def make(rows=600, seed=0):
    draw = np.random.default_rng(seed)
    area = draw.uniform(40, 250, rows).round(1)
    rooms = np.clip((area / 25 + draw.normal(0, 1, rows)).round(), 1, 10)
    town = draw.choice(["Aarau", "Bern", "Chur"], rows, p=[0.3, 0.5, 0.2])
    garden = draw.random(rows) < 0.4
    built = draw.integers(1900, 2025, rows).astype(float)
    price = area * 5.2 + rooms * 11 + (built - 1900) * 1.3 + garden * 60
    price = price * pd.Series(town).map({"Aarau": 1.0, "Bern": 1.4, "Chur": 0.8}).to_numpy()
    price = price + draw.normal(0, 40, rows)
    built[draw.random(rows) < 0.1] = np.nan  # nobody knows
    return pd.DataFrame(
        {"area": area, "rooms": rooms, "town": town, "garden": garden, "built": built, "price": price.round(1)}
    )


if __name__ == "__main__":
    target = Path(__file__).with_name("houses.csv")
    make().to_csv(target, index=False)
    print(f"wrote {target}")
