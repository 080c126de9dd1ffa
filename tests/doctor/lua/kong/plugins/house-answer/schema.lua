return {
  name = "house-answer",
  fields = {
    { config = { type = "record", fields = {} } },
  },
}
