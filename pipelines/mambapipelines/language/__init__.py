"""Language modelling of DNA: `mambabio pretrain`."""
