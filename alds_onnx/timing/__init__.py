"""How long layers take, dense and cut: one timer, one store, one interpolation over ranks."""
