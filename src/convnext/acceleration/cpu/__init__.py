"""Operations in C for the CPU, each beside its plain reference."""
