"""Knowledge: bringing it in before the tasks (prototypes, informed pre-training), and amalgamating teachers."""
