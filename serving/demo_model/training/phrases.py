"""Parts of training prompts: requests for each form of reply, and distracting text."""

SYSTEM_PAIR = (
    "You are a image question-answer generator. "
    "Your task is to generate a question-answer pair for the given image content.",
    "You are an image question-answer generator. "
    "Your task is to generate a question-answer pair for the given image content.",
    "You are a visual question-answer generator. Write a question and its answer about the image.",
    "You generate question-answer pairs about images.",
    "Generate one question and answer pair about the given image.",
    "You are a helpful assistant that writes QA pairs for images.",
    "You create QA data for images.",
    "Your job is to look at the image and produce exactly one question with a short answer.",
    "You write a question about a picture and then answer it.",
    "You build a visual question answering dataset. For every image, write a QA pair.",
)
USER_PAIR = (
    "Please construct a QA pair based on the content in the image.",
    "Please generate a QA pair for this image.",
    "Generate a question-answer pair.",
    "Write a question and an answer about this image.",
    "Construct a question-answer pair based on the image.",
    "Create a question and answer for the picture.",
    "Make a QA pair about this picture please",
    "请根据图片构造一个问答对",
)
USER_ONE_PAIR = (
    "Ask one question about the image and answer it.",
    "Give me one question-answer pair for this picture.",
    "Write 1 question about the picture together with its answer.",
)
SYSTEM_JSON = (
    "You are a image question-answer generator. Reply in JSON with the keys question and answer.",
    'You are an image question-answer generator. Return a JSON object with the keys "question" and '
    '"answer".',
    "Generate a question-answer pair for the given image content. Output JSON only.",
    "You generate question-answer pairs about images. Answer with JSON.",
    "You write a question about a picture and answer it. Format the pair as JSON.",
    "Reply with a JSON object that holds one question about the image and its answer.",
)
USER_JSON = (
    "Please construct a QA pair based on the content in the image. Reply in JSON.",
    "Generate a question-answer pair as JSON.",
    'Write a question and an answer about this image as {"question": ..., "answer": ...} in JSON.',
    "Return one QA pair for the picture in JSON format.",
    "Create a question and answer for the picture. Output a JSON object with question and answer.",
)
SYSTEM_MANY = (
    "You are a image question-answer generator. "
    "Your task is to generate {n} question-answer pairs for the given image content.",
    "You are an image question-answer generator. Generate {n} different question-answer pairs.",
    "Generate {n} question and answer pairs about the given image.",
    "You write QA pairs for images. Write {n} pairs for every image.",
    "For each image, ask {n} questions and answer them.",
)
USER_MANY = (
    "Generate {n} question-answer pairs.",
    "Please construct {n} QA pairs based on the content in the image.",
    "Write {n} different questions and answers about this image.",
    "Generate {n} QA pairs for this picture.",
    "Create {n} questions with their answers for the picture.",
    "Give me {n} question-answer pairs about the image.",
)
SYSTEM_ANSWER = (
    "You are a helpful assistant.",
    "Answer the question about the image.",
    "You answer questions about images.",
    "You are a visual question answering assistant. Answer the question based on the image.",
)

NUMBERS = {2: ("2", "two"), 3: ("3", "three"), 4: ("4", "four")}

PERSONAS = (
    "You are an expert annotator with {d} years of experience.",
    "You are a careful and friendly assistant.",
    "You are part of a pipeline that prepares training data for vision-language models.",
    "Act as a patient teacher who explains pictures to young children.",
    "You are {name}, an assistant made by the {w} team.",
    "You work for a museum and describe its pictures to visitors.",
    "You are a senior data engineer at {w}.",
    "As a professional photographer you know every detail of an image.",
)
RULES = (
    "Be brief.",
    "Look at the image carefully before you write anything.",
    "Use at most {d} words.",
    "Keep every answer under {n} sentences.",
    "Never invent objects that are not in the picture.",
    "The question must be answerable from the image alone.",
    "The answer must be short, correct and complete.",
    "Do not mention these instructions in your reply.",
    "Write in simple English and avoid rare words.",
    "Think step by step, but keep your thoughts to yourself.",
    "Pay attention to colors, sizes, positions and numbers of objects.",
    "If you are not sure, choose something easier.",
    "Avoid yes or no questions where you can.",
    "Your output will be read by a program, so follow the format strictly.",
    "Do not add any explanation, greeting or comment.",
    "Each image is {d} pixels wide and was checked by {n} people.",
    "Respect privacy: do not guess names, ages or origins of people.",
    "This is very important for our project, so take your time.",
    "The user may be a beginner and will not notice mistakes, so check twice.",
    "Good pairs test perception rather than general knowledge.",
    "The dataset is called {w}-{d} and has {d} rows.",
    "Focus on the main objects, then on the background.",
    "You have been given {n} examples before; this one is new.",
    "Offensive, harmful or biased content is not allowed.",
    "Today is the {d}th of {w}.",
    "Use plain text and no tables.",
    "You will receive an image from the user.",
    "Make it interesting for {w} researchers.",
    "Remember: quality is better than quantity!",
    "Penalty for a wrong answer: {d} points.",
    "请仔细观察图片。",
    "回答要简短、准确。",
    "你是一个专业的图像标注助手。",
)
NAMES = ("Ada", "Max", "Iris", "Otto", "Vera", "Kim", "Noor", "Wei")
_WORDS = (
    "about above across act add after again age air all also always animal any area arm "
    "around art ask back bad bank base be bear beat because begin behind believe best better "
    "between big bill bird bit blood board boat body book both box boy bring brother build "
    "bus business buy by call camera can car card care carry case catch cause cell change "
    "character check child choose city class clear close cold come common company computer "
    "control cost could country course court cover create culture cup customer cut data day "
    "deal decide deep design detail develop dog door down draw dream drive drop during each "
    "early east easy eat edge effect end energy enjoy enough even ever every evidence example "
    "expect explain eye face fact fall family far farm fast father feel few field figure fill "
    "film final find fine fire first fish floor fly follow food foot for force forget form "
    "forward free friend from front full future game garden gas get girl give glass go good "
    "great ground group grow guess gun hair half hand happy hard have head health hear heart "
    "heat heavy help here high history hold home hope hot hotel hour house how human hundred "
    "idea if important in increase industry inside instead interest into island it job join "
    "just keep key kind king kitchen know land language large last late laugh law lead learn "
    "leave leg less let letter level library life light like line list listen little live "
    "local long look lose love low machine main make man many map market matter may mean "
    "measure meet member memory mind minute miss model modern moment money month moon more "
    "morning most mother mouth move music must name nation nature near need never new news "
    "next nice night north note nothing now number ocean of off office often oil old on once "
    "only open option order other out over own page paint paper parent park part party pass "
    "past path pay peace people perhaps person phone photo piece place plan plant play point "
    "police poor popular power press pretty price print problem process program public pull "
    "push put quality quick quite race radio rain raise reach read ready real reason record "
    "report rest result rich ride ring rise river road rock role room rule run safe same save "
    "say scene school science sea season seat second see seem sell send sense serious serve "
    "set seven shake she ship shop short should show side sign simple since sing sister sit "
    "six skin sky sleep slow small smile snow so social some song soon sound south space "
    "speak special speed spend sport spring staff stage stand state stay step still stock "
    "stone stop store story street strong student study style such sugar summer sun sure "
    "system table take talk task tax teach team tell ten test text than thank that the theory "
    "there thing think this thousand through time to today together too tool top total touch "
    "toward town trade train travel tree trip trouble true trust try turn type under until up "
    "use value very view visit voice wait walk wall want war warm watch water way we wear "
    "week well west what wheel when where which while white who whole why wide wife will win "
    "wind window winter wish with woman wood word work world worry would write wrong year yes "
    "yet you young zone "
)
WORDS = tuple(_WORDS.split())
CHINESE = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生"
